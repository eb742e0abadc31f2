-- sale_refusal: whether the partition has a sale (one whose draft was deleted has not), and what it refuses every hold for.
local function sale_exists()
  return state.status ~= '' and state.status ~= 'deleted'
end

local function sale_refusal()
  if state.status ~= 'open' then return { state.status == 'closed' and code.SALE_CLOSED or code.SALE_NOT_OPEN } end
  if state.sequence - state.persisted >= header.backlog_max then return { code.LEDGER_BEHIND } end
  return nil
end
