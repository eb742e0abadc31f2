-- expire_due: ends up to `limit` holds whose deadline has passed.
-- Returns how many it ended, how many index entries it looked at, and whether more may be due.
local function expire_due(limit)
  local digests = due.take(limit)
  order.load(digests)
  local expired = 0
  for _, digest in ipairs(digests) do
    local record = order.find(digest)
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

-- The SKU of the first line that is short although due holds of it were ended: whoever wants a unit of a hold that is
-- due gets it. Nil if none is. Returns also whether asking again may find more.
local function short_sku_after_reclaiming(lines, channel)
  local short_sku = short_sku_of(lines, channel)
  while short_sku and stock.rows[short_sku][HELD] > 0 and not due.exhausted do
    if not reclaim() then return short_sku, true end
    short_sku = short_sku_of(lines, channel)
  end
  return short_sku, false
end
