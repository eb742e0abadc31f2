-- cancel: give a hold back because its buyer asked for it.
--
-- [cancel, digest]
-- DONE, REPEATED {order} · ORDER_NOT_FOUND · ORDER_NOT_HELD {status}
commands.cancel = {}

function commands.cancel.needs(c, need)
  need.order(c[2])
end

function commands.cancel.apply(c)
  local before = order.get_to_end(c[2], header.retention_ms)
  if not before then return { code.ORDER_NOT_FOUND } end
  if before[STATUS] == order_status.CANCELLED then return { code.REPEATED, before } end
  if before[STATUS] ~= order_status.HELD then return { code.ORDER_NOT_HELD, order_status_name[before[STATUS]] } end
  return { code.DONE, give_back(c[2], before, order_status.CANCELLED, entry.CANCELLED) }
end
