-- expire_due: ends up to `limit` holds whose deadline has passed.
-- Returns how many it ended, how many index entries it looked at, and whether more may be due.
local function expire_due(limit)
  local digests = due.take(limit)
  order.load(digests)
  local expired = 0
  for _, digest in ipairs(digests) do
    local record = order.records[digest]
    -- one settled or cancelled earlier in this batch stands in the index until the batch is committed
    if record and record[STATUS] == order_status.HELD then
      give_back(digest, record, order_status.EXPIRED, entry.EXPIRED)
      expired = expired + 1
    end
  end
  return expired, #digests, not due.exhausted
end

local RECLAIM_ORDERS_MAX = 200 -- holds that buyers' commands may end in one batch, so that a batch stays short
local reclaimed = 0

-- End some due holds for a buyer's sake; false if this batch has ended as many as it may.
local function reclaim()
  if reclaimed >= RECLAIM_ORDERS_MAX then return false end
  local _, looked_at = expire_due(RECLAIM_ORDERS_MAX - reclaimed)
  reclaimed = reclaimed + looked_at
  return true
end

-- Find units for a buyer, ending due holds where a line is short: whoever wants a unit of a hold that is due gets it.
-- Returns the units; or nil, the SKU that is short, and whether asking again may find more.
local function find_units_reclaiming(lines, channel)
  local units, short_sku = find_units(lines, channel)
  while not units and stock.row(short_sku)[HELD] > 0 and not due.exhausted do
    if not reclaim() then return nil, short_sku, true end
    units, short_sku = find_units(lines, channel)
  end
  return units, short_sku, false
end
