-- get_order: read one order.
--
-- [get_order, digest]
-- DONE {order} · ORDER_NOT_FOUND
commands.get_order = { reads = 'order' }

local FOUND_HEAD = array_header(2) .. cmsgpack.pack(code.DONE)

function commands.get_order.apply(digest)
  if not order.get(digest, header.retention_ms) then return { code.ORDER_NOT_FOUND } end
  return nil, FOUND_HEAD .. order.pack_record(digest)
end
