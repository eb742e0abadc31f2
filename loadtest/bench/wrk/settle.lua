-- settle: payments of held orders, each once. wrk … -- KEY PRICE FILE THREADS; FILE has an order id on each line.
local threads = {}

function setup(thread)
  thread:set('thread_number', #threads)
  threads[#threads + 1] = thread
end

function init(args)
  local key, price, path, thread_count = args[1], args[2], args[3], tonumber(args[4])
  issued, special, exhausted = 0, 0, 0
  ids = {}
  local number = 0
  for line in io.lines(path) do
    if number % thread_count == thread_number then ids[#ids + 1] = line end
    number = number + 1
  end
  middle = '/settle HTTP/1.1\r\nHost: ' .. wrk.headers['Host'] .. '\r\nAuthorization: Bearer ' .. key
    .. '\r\nContent-Type: application/json\r\nContent-Length: '
  tail = '","amount_minor":' .. price .. ',"currency":"CNY"}'
end

function request()
  issued = issued + 1
  local place = issued
  if place > #ids then
    exhausted = exhausted + 1
    place = #ids
  end
  local body = '{"payment_id":"pay-' .. thread_number .. '-' .. place .. tail
  return 'POST /v1/orders/' .. ids[place] .. middle .. #body .. '\r\n\r\n' .. body
end

function done(summary, latency, _)
  local issued_of, special_of = {}, {}
  for i, thread in ipairs(threads) do
    issued_of[i], special_of[i] = thread:get('issued'), thread:get('exhausted')
  end
  local errors = summary.errors
  io.write(('RESULT {"requests":%d,"duration_us":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,'
    .. '"p50_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d,"issued":[%s],"special":[%s]}\n'):format(
    summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.timeout, errors.status,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    table.concat(issued_of, ','), table.concat(special_of, ',')))
end
