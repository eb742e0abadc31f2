-- packing: MessagePack put together from pieces that are packed already, so that nothing is packed twice.
local function array_header(count)
  if count < 16 then return string.char(0x90 + count) end
  if count < 65536 then return struct.pack('>BI2', 0xdc, count) end
  return struct.pack('>BI4', 0xdd, count)
end

-- What goes before a string's bytes.
local string_headers = {}

local function string_header(length)
  local header = string_headers[length]
  if not header then
    if length < 32 then header = string.char(0xa0 + length)
    elseif length < 256 then header = string.char(0xd9, length)
    elseif length < 65536 then header = struct.pack('>BI2', 0xda, length)
    else header = struct.pack('>BI4', 0xdb, length) end
    string_headers[length] = header
  end
  return header
end

-- How long that is, by its first byte, for strings of more than 31 bytes.
local STRING_HEADER_LENGTH = { [0xd9] = 2, [0xda] = 3, [0xdb] = 5 }

-- A value, packed, of a kind of which a batch has few: prices, amounts, channels, times, the currency.
local packed_values = {}

local function pack_cached(value)
  local packed = packed_values[value]
  if not packed then
    packed = cmsgpack.pack(value)
    packed_values[value] = packed
  end
  return packed
end

-- An array of `count` values that are packed already.
local function pack_array(count, packed)
  return array_header(count) .. table.concat(packed)
end
