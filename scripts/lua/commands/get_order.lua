-- get_order: read one order.
--
-- [get_order, digest]
-- DONE {order} · ORDER_NOT_FOUND
commands.get_order = {}

function commands.get_order.needs(c, need)
  need.order(c[2])
end

function commands.get_order.apply(c)
  local record = order.get(c[2], header.retention_ms)
  if not record then return { code.ORDER_NOT_FOUND } end
  return { code.DONE, record }
end
