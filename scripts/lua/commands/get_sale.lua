-- get_sale: read the sale at this sequence number.
--
-- [get_sale]
-- DONE {{status, version, sequence, time, epoch, persisted, hold_ms, closed_at, ever held}, definition,
--       {{sku, row}, …}}
commands.get_sale = {}

-- A copy, for a later command of the batch changes the row in place, and the answer is packed after it.
local function copy_row(row)
  local copy, pools = {}, {}
  for i = 1, POOLS do copy[i] = row[i] end
  for pool, units in pairs(row[POOLS]) do pools[pool] = units end
  copy[POOLS] = pools
  return copy
end

function commands.get_sale.apply()
  local levels = {}
  for i, sku in ipairs(stock.load_all()) do levels[i] = { sku, copy_row(stock.row(sku)) } end
  local summary = {
    state.status, state.version, state.sequence, now, state.epoch, state.persisted, state.hold_ms, state.closed_at,
    state.ever_held == 1,
  }
  return { code.DONE, summary, definition.read(), levels }
end
