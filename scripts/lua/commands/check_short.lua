-- check_short: for many buyers at once, whether a cart of one line, without discount and freight, is to be refused for
--              want of stock; it changes nothing, and says so only where a hold would, in the order of the contract's §3.
--
-- [check_short, {{channel, sku, quantity}, …}, {buyer, …}, {place in the first, from 0, of what each wants}]
-- DONE {{{outcome, available, unit price} of SOLD_OUT, {outcome} of another refusal, or {} where a hold must tell}, …},
--       {positions of the buyers who have orders here, which may be what they ask for}}
commands.check_short = {}

function commands.check_short.needs(wanted, things, buyers)
  for _, thing in ipairs(things) do wanted.sku[#wanted.sku + 1] = thing[2] end
  buyer.load(buyers)
end

local function verdict(thing)
  local channel, row = thing[1], stock.row(thing[2])
  local refusal = sale_refusal()
  if refusal then return refusal end
  if not row then return {} end
  local available = stock.available_to(row, channel)
  if available >= thing[3] then return {} end
  if row[HELD] > 0 and due.any() then return {} end -- units that a hold would give back first
  return { code.SOLD_OUT, available, row[PRICE] }
end

function commands.check_short.apply(things, buyers)
  local verdicts, known = {}, {}
  for i, thing in ipairs(things) do verdicts[i] = verdict(thing) end
  for i, buyer_part in ipairs(buyers) do
    if buyer.bytes[buyer_part] then known[#known + 1] = i end
  end
  return { code.DONE, verdicts, known }
end
