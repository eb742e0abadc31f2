-- define: create the sale, or change it. A quantity sets what is allocated; the difference goes to or from `shared`.
--
-- [define, command id, version it must have (0: any, -1: any but existing), definition, currency, hold_ms,
--  buyer_limit (0: none), {style = limit}, opens_at, closes_at (0: none),
--  {{sku, style, price, limit (0: none), quantity, withheld, {{channel, units}, …}}, …}]
-- DONE {created} · SALE_CLOSED · CONFLICT {field or SKU, reason} · INVALID {SKU, reason}
commands.define = {}

-- A new SKU's row: its withheld units and its channels' own come out of its quantity, the rest is shared.
local function new_row(spec)
  local pools, shared = {}, spec[5] - spec[6]
  for _, own in ipairs(spec[7]) do
    if own[2] > 0 then pools[own[1]] = own[2] end
    shared = shared - own[2]
  end
  if shared < 0 then return nil end
  pools.shared = shared
  return { spec[5], spec[6], 0, 0, spec[3], spec[4], spec[2], pools }
end

-- The rows as they would be, and what moves; nothing is changed yet.
-- Returns {rows, moved, removed}, or nil and the refusal.
local function plan_rows(specs)
  local rows, moved, removed, named = {}, {}, {}, {}
  for _, spec in ipairs(specs) do
    local sku, before = spec[1], stock.row(spec[1])
    named[sku] = true
    if before then
      local difference = spec[5] - before[ALLOCATED]
      if before[POOLS].shared + difference < 0 then
        return nil, { code.CONFLICT, sku, 'fewer units are unsold in the shared pool than would be taken out' }
      end
      rows[sku] = { before[ALLOCATED], before[WITHHELD], before[HELD], before[SETTLED], spec[3], spec[4], spec[2],
        before[POOLS] }
      if difference ~= 0 then moved[#moved + 1] = { sku, 'shared', difference } end
    else
      local row = new_row(spec)
      if not row then return nil, { code.INVALID, sku, 'withheld and channels are more than the quantity' } end
      rows[sku] = row
      if row[WITHHELD] > 0 then moved[#moved + 1] = { sku, 'withheld', row[WITHHELD] } end
      -- shared is named even if it is zero: it is how a reader of the journal learns of the SKU
      for pool, units in pairs(row[POOLS]) do moved[#moved + 1] = { sku, pool, units } end
    end
  end
  for _, sku in ipairs(stock.load_all()) do
    if not named[sku] then
      local row = stock.row(sku)
      if row[HELD] > 0 or row[SETTLED] > 0 then
        return nil, { code.CONFLICT, sku, 'units of it are held or settled, so that it cannot be left out' }
      end
      removed[#removed + 1] = sku
      if row[WITHHELD] > 0 then moved[#moved + 1] = { sku, 'withheld', -row[WITHHELD] } end
      for pool, units in pairs(row[POOLS]) do
        if units > 0 then moved[#moved + 1] = { sku, pool, -units } end
      end
    end
  end
  return { rows = rows, moved = moved, removed = removed }
end

local function apply_rows(plan)
  for sku, row in pairs(plan.rows) do
    local is_new = stock.row(sku) == nil
    stock.insert(sku, row)
    plan.rows[sku] = is_new
  end
  for _, move in ipairs(plan.moved) do
    if plan.rows[move[1]] == false then
      stock.add(move[1], move[2], move[3])
      stock.count(move[1], ALLOCATED, move[3])
    end
  end
  for _, sku in ipairs(plan.removed) do stock.remove(sku) end
end

local function refuse_definition(if_match, currency, exists)
  if state.status == 'closed' then return { code.SALE_CLOSED } end
  if if_match ~= 0 and not exists then return { code.CONFLICT, 'If-Match', 'there is no such sale yet' } end
  if if_match > 0 and if_match ~= state.version then
    return { code.CONFLICT, 'If-Match', 'the sale has been changed since' }
  end
  if exists and state.ever_held == 1 and state.currency ~= currency then
    return { code.CONFLICT, 'currency', 'it is fixed once there has been a hold' }
  end
  return nil
end

-- The definition in force, word for word, with its quantities in force too: no change of state, so no entry and no
-- version. Whoever repeats a PUT gets the same sale again, and nobody's ETag goes stale by it.
local function changes_nothing(text, plan)
  return #plan.moved == 0 and #plan.removed == 0 and definition.read() == text
end

function commands.define.apply(
    _, if_match, text, currency, hold_ms, buyer_limit, style_limits, opens_at, closes_at, specs)
  local exists = sale_exists()
  local refusal = refuse_definition(if_match, currency, exists)
  if refusal then return refusal end
  local plan
  plan, refusal = plan_rows(specs)
  if not plan then return refusal end
  if exists and changes_nothing(text, plan) then return { code.DONE, false } end

  apply_rows(plan)
  if not exists then
    state.set('status', 'draft')
    state.set('ever_held', 0)
  end
  state.set('version', state.version + 1)
  state.set('currency', currency)
  state.set('hold_ms', hold_ms)
  state.set('buyer_limit', buyer_limit)
  state.set('style_limits', next(style_limits) and cmsgpack.pack(style_limits) or '')
  state.set('opens_at', opens_at)
  state.set('closes_at', closes_at)
  definition.set(text)
  journal.append({ entry.SALE_DEFINED, state.version, not exists, text, plan.moved, plan.removed })
  apply_schedule()
  return { code.DONE, not exists }
end
