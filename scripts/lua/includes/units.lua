-- units: taking an order's units out of their pools. `lines` is {line_id, sku, quantity, …}.

-- The first line that its channel's own pool and `shared` cannot serve together: its SKU; nil if all can be served.
local function short_sku_of(lines, channel)
  local count = #lines
  local used = count > 3 and {} or nil -- by the lines before: a SKU may stand in several
  for i = 2, count, 3 do
    local sku, wanted = lines[i], lines[i + 1]
    local pools = stock.rows[sku][POOLS]
    if used then
      wanted = wanted + (used[sku] or 0)
      used[sku] = wanted
    end
    if wanted > pools.shared + (pools[channel] or 0) then return sku end
  end
  return nil
end

-- The units of the lines up to a position, where all of them are from `shared`.
local function shared_units(lines, last)
  local units = {}
  for i = 2, last, 3 do units[#units + 1] = { lines[i], 'shared', lines[i + 1] } end
  return units
end

-- Take the lines' units, a channel's own pool first and the rest from `shared`, into a column, HELD or SETTLED.
-- Returns where they came from, {{sku, pool, quantity}, …}; nil where all are from `shared`, line by line.
function take_units(lines, channel, column)
  local from
  for i = 2, #lines, 3 do
    local sku, quantity = lines[i], lines[i + 1]
    local row = stock.rows[sku]
    local own = math.min(row[POOLS][channel] or 0, quantity)
    if own > 0 then
      from = from or shared_units(lines, i - 3)
      from[#from + 1] = { sku, channel, own }
      stock.take(sku, row, channel, own, column)
    end
    if quantity > own then
      if from then from[#from + 1] = { sku, 'shared', quantity - own } end
      stock.take(sku, row, 'shared', quantity - own, column)
    end
  end
  return from
end
