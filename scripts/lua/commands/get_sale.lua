-- get_sale: read the sale at this sequence number.
--
-- [get_sale]
-- DONE {{status, version, sequence, time, epoch, persisted, hold_ms, closed_at, ever held}, definition,
--       {{sku, row}, …}}
commands.get_sale = {}

function commands.get_sale.apply()
  local levels = {}
  for i, sku in ipairs(stock.load_all()) do levels[i] = { sku, stock.row(sku) } end
  local summary = {
    state.status, state.version, state.sequence, now, state.epoch, state.persisted, state.hold_ms, state.closed_at,
    state.ever_held == 1,
  }
  return { code.DONE, summary, definition.read(), levels }
end
