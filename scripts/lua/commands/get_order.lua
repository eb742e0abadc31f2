-- get_order: read one order.
--
-- [get_order, digest]
-- DONE {order} · ORDER_NOT_FOUND
commands.get_order = { reads = 'order' }

function commands.get_order.apply(digest)
  local record = order.get(digest, header.retention_ms)
  if not record then return { code.ORDER_NOT_FOUND } end
  return { code.DONE, record }
end
