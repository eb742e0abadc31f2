-- expire: give back holds whose deadline has passed, the earliest first; at no time does it end one early.
--
-- [expire, at most so many]
-- DONE {orders expired, whether more may be due}
commands.expire = {}

function commands.expire.apply(limit)
  local expired, _, more = expire_due(limit)
  return { code.DONE, expired, more }
end
