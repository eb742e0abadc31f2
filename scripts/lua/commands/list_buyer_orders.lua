-- list_buyer_orders: read a buyer's orders of this sale, newest first, at most 100.
--
-- [list_buyer_orders, channel, buyer_id]
-- DONE {{{digest, order}, …}}
commands.list_buyer_orders = {}

function commands.list_buyer_orders.needs(c, need)
  need.buyer(buyer.field(c[2], c[3]))
end

function commands.list_buyer_orders.apply(c)
  local packed = buyer.row(buyer.field(c[2], c[3]))[DIGESTS]
  local digests, found = {}, {}
  for first = #packed - DIGEST_LENGTH + 1, 1, -DIGEST_LENGTH do
    digests[#digests + 1] = string.sub(packed, first, first + DIGEST_LENGTH - 1)
  end
  order.load(digests)
  for _, digest in ipairs(digests) do
    local record = order.get(digest, header.retention_ms)
    if record then found[#found + 1] = { digest, record } end
  end
  return { code.DONE, found }
end
