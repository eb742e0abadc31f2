-- list_buyer_orders: read a buyer's orders of this sale, newest first, at most 100.
--
-- [list_buyer_orders, the buyer's part of their orders' digests]
-- DONE {{{digest, order}, …}}
commands.list_buyer_orders = { reads = 'buyer' }

function commands.list_buyer_orders.apply(buyer_part)
  local digests, found = buyer.digests(buyer_part), {}
  order.load(digests)
  for _, digest in ipairs(digests) do
    local record = order.get(digest, header.retention_ms)
    if record then found[#found + 1] = { digest, record } end
  end
  return { code.DONE, found }
end
