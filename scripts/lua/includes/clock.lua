-- clock: Redis' own time in milliseconds, made monotone for this partition.
local RUN_ID_LENGTH = 40
local now -- set once a batch; every change of a batch happens at one time

local function server_time()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The run of the server that this script runs on: another run means that memory may have been lost in between.
local function server_run()
  local info = redis.call('INFO', 'server')
  local _, last = string.find(info, 'run_id:', 1, true) -- a pattern would be tried at each character
  return string.sub(info, last + 1, last + RUN_ID_LENGTH)
end
