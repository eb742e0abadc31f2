-- packing: MessagePack put together from pieces that are packed already, so that nothing is packed twice.
local function array_header(count)
  if count < 16 then return string.char(0x90 + count) end
  if count < 65536 then return struct.pack('>BI2', 0xdc, count) end
  return struct.pack('>BI4', 0xdd, count)
end

-- A number, packed; most of a batch's are the same few: prices, amounts, zeros.
local packed_numbers = {}

local function pack_number(number)
  local packed = packed_numbers[number]
  if not packed then
    packed = cmsgpack.pack(number)
    packed_numbers[number] = packed
  end
  return packed
end

-- An array of `count` values that are packed already.
local function pack_array(count, packed)
  return array_header(count) .. table.concat(packed)
end
