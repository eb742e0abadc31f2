-- clock: Redis' own time in milliseconds, made monotone for this partition.
local now -- set once a batch; every change of a batch happens at one time

local function server_time()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The run of the server that this script runs on: another run means that memory may have been lost in between.
local function server_run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end
