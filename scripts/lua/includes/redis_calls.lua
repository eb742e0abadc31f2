-- redis_calls: Redis commands over many fields, in pieces that Lua's stack can carry.
local ARGUMENTS_MAX = 4000 -- even, for pairs; Lua's unpack() refuses about 8,000 values

local function call_in_pieces(verb, key, arguments)
  for first = 1, #arguments, ARGUMENTS_MAX do
    redis.call(verb, key, unpack(arguments, first, math.min(first + ARGUMENTS_MAX - 1, #arguments)))
  end
end

-- The values of many hash fields, in the fields' order; false where a field is not there.
local function hash_get(key, fields)
  if #fields <= ARGUMENTS_MAX then return #fields == 0 and {} or redis.call('HMGET', key, unpack(fields)) end
  local values = {}
  for first = 1, #fields, ARGUMENTS_MAX do
    local last = math.min(first + ARGUMENTS_MAX - 1, #fields)
    local piece = redis.call('HMGET', key, unpack(fields, first, last))
    for i = 1, last - first + 1 do
      values[first + i - 1] = piece[i]
    end
  end
  return values
end

-- Numbers as Redis' commands want them: `..` would print large ones in exponent form.
local function integer_text(number)
  return string.format('%d', number)
end
