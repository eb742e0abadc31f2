-- transitions: a sale's way from draft to closed, on request or when its time has come.
local function set_status(status)
  state.set('status', status)
  state.set('version', state.version + 1)
end

local function open_sale(scheduled)
  set_status('open')
  journal.append({ entry.SALE_OPENED, state.version, scheduled })
end

-- Take all withheld and available units out of the sale. Returns what moved.
local function remove_unsold()
  local moved = {}
  for _, sku in ipairs(stock.load_all()) do
    local row, out = stock.row(sku), {}
    if row[WITHHELD] > 0 then out[#out + 1] = { sku, 'withheld', -row[WITHHELD] } end
    for pool, units in pairs(row[POOLS]) do
      if units > 0 then out[#out + 1] = { sku, pool, -units } end
    end
    for _, move in ipairs(out) do
      stock.add(sku, move[2], move[3])
      stock.count(sku, ALLOCATED, move[3])
      moved[#moved + 1] = move
    end
  end
  return moved
end

local function close_sale(scheduled)
  local moved = remove_unsold()
  set_status('closed')
  state.set('closed_at', now)
  journal.append({ entry.SALE_CLOSED, state.version, scheduled, moved })
end

-- Open or close the sale if its time has come. It goes before every batch, so that no hold succeeds at or after
-- closes_at, whether a scheduler lives or not.
local function apply_schedule()
  if state.status == 'draft' and state.opens_at > 0 and now >= state.opens_at then open_sale(true) end
  if state.closes_at > 0 and now >= state.closes_at and (state.status == 'open' or state.status == 'paused'
      or state.status == 'draft') then
    close_sale(true)
  end
end
