-- stock: each SKU's units, read once and written once a batch. At every sequence number
--        allocated = withheld + available + held + settled, each ≥ 0, where available is the sum of the pools.
--
-- row  [allocated, withheld, held, settled, unit price, buyer's limit (0: none), style, {pool = units}]
--      as StockLevels in engine/domain/sales.py; the pool `shared` is always there
local ALLOCATED, WITHHELD, HELD, SETTLED, PRICE, SKU_LIMIT, STYLE, POOLS = 1, 2, 3, 4, 5, 6, 7, 8
local stock = { rows = {}, changed = {}, removed = {}, key = KEYS[2], complete = false }

function stock.load(skus)
  local missing = {}
  for _, sku in ipairs(skus) do
    if stock.rows[sku] == nil then
      stock.rows[sku] = false
      missing[#missing + 1] = sku
    end
  end
  if #missing == 0 or stock.complete then return end
  for i, packed in ipairs(hash_get(stock.key, missing)) do
    if packed then stock.rows[missing[i]] = cmsgpack.unpack(packed) end
  end
end

-- Load every SKU of the sale, and return their names in the order of their names.
function stock.load_all()
  if not stock.complete then
    local all = redis.call('HGETALL', stock.key)
    for i = 1, #all, 2 do
      if stock.rows[all[i]] == nil then stock.rows[all[i]] = cmsgpack.unpack(all[i + 1]) end
    end
    stock.complete = true
  end
  local names = {}
  for sku, row in pairs(stock.rows) do
    if row then names[#names + 1] = sku end
  end
  table.sort(names)
  return names
end

-- A SKU's row, or nil if the sale has no such SKU.
function stock.row(sku)
  if stock.rows[sku] == nil then stock.load({ sku }) end
  return stock.rows[sku] or nil
end

function stock.available(row)
  local units = 0
  for _, quantity in pairs(row[POOLS]) do units = units + quantity end
  return units
end

function stock.available_to(row, channel)
  return (row[POOLS][channel] or 0) + (row[POOLS].shared or 0)
end

-- The units in a pool, `withheld` counting as one.
function stock.in_pool(row, pool)
  if pool == 'withheld' then return row[WITHHELD] end
  return row[POOLS][pool] or 0
end

-- Add units to a pool, or take them out where the number is negative; a pool is never made negative.
function stock.add(sku, pool, quantity)
  local row = stock.row(sku)
  local units = stock.in_pool(row, pool) + quantity
  assert(units >= 0, 'a pool would be negative')
  if pool == 'withheld' then
    row[WITHHELD] = units
  else
    row[POOLS][pool] = units -- also 0: a channel that had a pool of its own has it when it is empty, too
  end
  stock.changed[sku] = true
end

-- Add to allocated, held or settled.
function stock.count(sku, column, quantity)
  local row = stock.row(sku)
  row[column] = row[column] + quantity
  assert(row[column] >= 0, 'a count would be negative')
  stock.changed[sku] = true
end

-- Take units out of a pool into a column, HELD or SETTLED. `row` is the SKU's.
function stock.take(sku, row, pool, quantity, column)
  local pools = row[POOLS]
  local units = pools[pool] - quantity
  if units < 0 then error('a pool would be negative') end
  pools[pool] = units
  row[column] = row[column] + quantity
  stock.changed[sku] = true
end

-- Held units go back into a pool, or out of the sale where there is none.
function stock.give_back(sku, pool, quantity)
  local row = stock.row(sku)
  local held = row[HELD] - quantity
  if held < 0 then error('a count would be negative') end
  row[HELD] = held
  if pool then
    row[POOLS][pool] = (row[POOLS][pool] or 0) + quantity
  else
    row[ALLOCATED] = row[ALLOCATED] - quantity
  end
  stock.changed[sku] = true
end

-- Held units are paid for.
function stock.settle(sku, quantity)
  local row = stock.row(sku)
  local held = row[HELD] - quantity
  if held < 0 then error('a count would be negative') end
  row[HELD] = held
  row[SETTLED] = row[SETTLED] + quantity
  stock.changed[sku] = true
end

function stock.insert(sku, row)
  stock.rows[sku] = row
  stock.changed[sku] = true
  stock.removed[sku] = nil
end

function stock.remove(sku)
  stock.rows[sku] = false
  stock.changed[sku] = nil
  stock.removed[sku] = true
end

function stock.pack()
  local changed, removed = {}, {}
  for sku in pairs(stock.changed) do
    local row = stock.rows[sku]
    local accounted = row[WITHHELD] + stock.available(row) + row[HELD] + row[SETTLED]
    assert(row[ALLOCATED] == accounted, 'units would appear or vanish')
    changed[#changed + 1] = sku
    changed[#changed + 1] = cmsgpack.pack(row)
  end
  for sku in pairs(stock.removed) do removed[#removed + 1] = sku end
  return function()
    call_in_pieces('HSET', stock.key, changed)
    call_in_pieces('HDEL', stock.key, removed)
  end
end
