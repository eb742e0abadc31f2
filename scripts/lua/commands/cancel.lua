-- cancel: give a hold back because its buyer asked for it.
--
-- [cancel, digest]
-- DONE, REPEATED {order} · ORDER_NOT_FOUND · ORDER_NOT_HELD {status}
commands.cancel = { reads = 'order' }

local CANCEL_DONE = array_header(2) .. cmsgpack.pack(code.DONE)
local CANCEL_REPEATED = array_header(2) .. cmsgpack.pack(code.REPEATED)

function commands.cancel.apply(digest)
  local before = order.get_to_end(digest, header.retention_ms)
  if not before then return { code.ORDER_NOT_FOUND } end
  if before[STATUS] == order_status.CANCELLED then return nil, CANCEL_REPEATED .. order.pack_record(digest) end
  if before[STATUS] ~= order_status.HELD then return { code.ORDER_NOT_HELD, order_status_name[before[STATUS]] } end
  return nil, CANCEL_DONE .. end_hold(digest, before, order_status.CANCELLED, entry.CANCELLED)
end
