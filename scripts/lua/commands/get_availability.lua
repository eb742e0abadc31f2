-- get_availability: read what can be bought, by one channel or in all pools.
--
-- [get_availability, channel ('' for all)]
-- DONE {status, time, {{sku, available}, …}}, in the order of the SKUs' names
commands.get_availability = {}

function commands.get_availability.apply(channel)
  local levels = {}
  for i, sku in ipairs(stock.load_all()) do
    local row = stock.row(sku)
    levels[i] = { sku, channel == '' and stock.available(row) or stock.available_to(row, channel) }
  end
  return { code.DONE, state.status, now, levels }
end
