-- expire_due: ends up to `limit` holds whose deadline has passed. Those among them that were settled or cancelled in
--             time are passed over, and several such count as one: to look at one is that much cheaper.
-- Returns how many it ended, how many that counts for, and whether more may be due.
local PASSED_OVER_FOR_ONE = 8

function expire_due(limit)
  local expired, looked_at, cost = 0, 0, 0
  while limit - cost >= 1 and not due.exhausted do
    local digests = due.take(limit - cost)
    order.load(digests)
    for _, digest in ipairs(digests) do
      if order.is_held(digest) then
        end_hold(digest, order.find(digest), order_status.EXPIRED, entry.EXPIRED)
        expired = expired + 1
      end
    end
    looked_at = looked_at + #digests
    cost = expired + (looked_at - expired) / PASSED_OVER_FOR_ONE
  end
  return expired, cost, not due.exhausted
end

local RECLAIM_ORDERS_MAX = 200 -- holds that buyers' commands may end in one batch, so that a batch stays short
local reclaimed = 0

-- End some due holds for a buyer's sake; false if this batch has ended as many as it may.
function reclaim()
  if RECLAIM_ORDERS_MAX - reclaimed < 1 then return false end
  local _, cost = expire_due(RECLAIM_ORDERS_MAX - reclaimed)
  reclaimed = reclaimed + cost
  return true
end

-- The SKU of the first line that is short although due holds of it were ended: whoever wants a unit of a hold that is
-- due gets it. Nil if none is. Returns also whether asking again may find more.
function short_sku_after_reclaiming(lines, channel)
  local short_sku = short_sku_of(lines, channel)
  while short_sku and stock.rows[short_sku][HELD] > 0 and not due.exhausted do
    if not reclaim() then return short_sku, true end
    short_sku = short_sku_of(lines, channel)
  end
  return short_sku, false
end
