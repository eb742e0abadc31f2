-- orders: requests for orders, as loadtest/load/requests.py makes them, each of a buyer and a key of their own.
--
-- wrk … -- MODE SALE KEY PREFIX SKU OTHER_SKU PRICE EVERY SEEDS SEED_PREFIX
--   accepted   every request is new, on SKU
--   sold_out   new requests on SKU; every EVERYth repeats one of the SEEDS orders that were accepted before
--   mixed      new requests on SKU; every EVERYth on OTHER_SKU
--   storm      SEEDS keys, again and again, on SKU
-- PREFIX has three characters; the thread's number is the fourth. What was issued is counted here, and what came back
-- by wrk itself: a `response` function would have wrk copy every answer into Lua.
local template = '{"buyer_id":"%s","channel":"douyin","lines":[{"sku":"%s","quantity":1}],"expected_amount_minor":%s}'

local threads = {}

function setup(thread)
  thread:set('thread_number', #threads)
  threads[#threads + 1] = thread
end

local function halves(sale, key, prefix, sku, price)
  local marked = string.rep('#', 8)
  local body = template:format(prefix .. marked, sku, price)
  local request = 'POST /v1/sales/' .. sale .. '/orders HTTP/1.1\r\nHost: ' .. wrk.headers['Host'] .. '\r\n'
    .. 'Authorization: Bearer ' .. key .. '\r\nContent-Type: application/json\r\nIdempotency-Key: click-'
    .. prefix .. marked .. '\r\nContent-Length: ' .. #body .. '\r\n\r\n' .. body
  local parts = {}
  for part in (request .. marked):gmatch('(.-)' .. marked) do parts[#parts + 1] = part end
  assert(#parts == 3)
  return parts[1], parts[2], parts[3]
end

function init(args)
  mode, every, seeds = args[1], tonumber(args[8]), tonumber(args[9])
  local sale, key, prefix, sku, other_sku, price, seed_prefix =
    args[2], args[3], args[4] .. thread_number, args[5], args[6], args[7], args[10]
  issued, special = 0, 0
  local a, b, c = halves(sale, key, prefix, sku, price)
  local function fresh(number)
    local id = ('%08x'):format(number)
    return a .. id .. b .. id .. c
  end
  local sa, sb, sc = halves(sale, key, mode == 'mixed' and prefix or seed_prefix, mode == 'mixed' and other_sku or sku, price)
  local function seeded(number)
    local id = ('%08x'):format(number)
    return sa .. id .. sb .. id .. sc
  end
  local next_request = {
    accepted = function() return fresh(issued) end,
    sold_out = function()
      if issued % every ~= 0 then return fresh(issued) end
      special = special + 1
      return seeded(special % seeds + 1)
    end,
    mixed = function()
      if issued % every ~= 0 then return fresh(issued) end
      special = special + 1
      return seeded(issued)
    end,
    storm = function() return seeded(issued % seeds + 1) end,
  }
  make_request = next_request[mode]
end

function request()
  issued = issued + 1
  return make_request()
end

function done(summary, latency, _)
  local issued_of, special_of = {}, {}
  for i, thread in ipairs(threads) do
    issued_of[i], special_of[i] = thread:get('issued'), thread:get('special')
  end
  local errors = summary.errors
  io.write(('RESULT {"requests":%d,"duration_us":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,'
    .. '"p50_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d,"issued":[%s],"special":[%s]}\n'):format(
    summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.timeout, errors.status,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    table.concat(issued_of, ','), table.concat(special_of, ',')))
end
