-- list_buyer_orders: read a buyer's orders of this sale, newest first, at most 100.
--
-- [list_buyer_orders, the buyer's part of their orders' digests]
-- DONE {{{digest, order}, …}}
commands.list_buyer_orders = { reads = 'buyer' }

local LIST_HEAD, FOUND_ORDER = array_header(2) .. cmsgpack.pack(code.DONE), array_header(2) .. DIGEST_HEADER

function commands.list_buyer_orders.apply(buyer_part)
  local digests, found = buyer.digests(buyer_part), {}
  order.load(digests)
  for _, digest in ipairs(digests) do
    if order.get(digest, header.retention_ms) then
      found[#found + 1] = FOUND_ORDER .. digest .. order.pack_record(digest)
    end
  end
  return nil, LIST_HEAD .. pack_array(#found, found)
end
