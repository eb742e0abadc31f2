-- order: the orders of the batch, each found by its digest: 12 characters of its buyer, 12 of its own.
--
-- record  [format, status, channel, buyer, reference, whether its amount was expected, sequence, created, held until,
--          discount, freight, amount, currency, {{line_id, sku, quantity, unit price}, …}, {{sku, pool, quantity}, …},
--          version, sequence of the last change, settled at, {{payment_id, amount, currency, fate, at}, …}]
--          as OrderRecord in engine/domain/orders.py; times in milliseconds, money in minor units. No units at all means
--          that each line's are from `shared`, as almost all are.
-- kept    what lies in Redis of it: fields one behind the other, without an array around them.
--         An open hold's are the record's up to the units: of what follows nothing has happened yet.
--         An order's that has ended are what repeats need, and no more: format, status, channel, buyer, reference,
--         whether its amount was expected, sequence, created (since the partition was made), seconds held for, discount,
--         freight, changes of the sale until it ended, id of the payment that settled it, milliseconds until then,
--         {line_id ('': the line's position), sku, quantity, unit price, …}
--         Of one that ended in an odd way, or has changed since, they are all of the record's.
--
-- In memory a record is a table of these fields, but for its lines, which are flat: {line_id, sku, quantity, unit price,
-- …}. It is never changed in place: a change makes a copy.
local ORDER_FORMAT, ENDED_FORMAT = 3, 4
local STATUS, CHANNEL, BUYER, REFERENCE, AMOUNT_EXPECTED, SEQUENCE, CREATED = 2, 3, 4, 5, 6, 7, 8
local HELD_UNTIL, DISCOUNT, FREIGHT, AMOUNT, CURRENCY, LINES, UNITS, VERSION = 9, 10, 11, 12, 13, 14, 15, 16
local CHANGED_SEQUENCE, SETTLED_AT, PAYMENTS = 17, 18, 19
local order_status = { HELD = 1, SETTLED = 2, CANCELLED = 3, EXPIRED = 4, REFUND_DUE = 5 }
local order_status_name = { 'held', 'settled', 'cancelled', 'expired', 'refund_due' }
local payment_fate = { SETTLED = 1, TOO_LATE = 2, DUPLICATE = 3 }
local BUYER_PART, ORDER_PART = 12, 12 -- lengths of a digest's; as in engine/domain/identifiers.py
local DIGEST_HEADER = string_header(BUYER_PART + ORDER_PART)
local RECORD_HEADER, LINE_HEADER, ONE_LINE = array_header(PAYMENTS), array_header(4), array_header(1)
local ONE_LINE_HEAD, THREE, FOUR = ONE_LINE .. LINE_HEADER, array_header(3), array_header(4)
local FORMAT, NONE = cmsgpack.pack(ORDER_FORMAT), {} -- no units of its own, no payments: of records that have none
local FIRST_VERSION, NOT_SETTLED_NOR_PAID = cmsgpack.pack(1), cmsgpack.pack(0, {})
local PAYMENTS_MAX = 200 -- payments kept with one order; one more is a CONFLICT, for a person to look at

-- kept: by digest, the bytes; false where there is no such order. records: those that somebody has looked into.
-- moved: those that do not lie in their buyer's row (includes/buyer.lua), but in a hash of their own.
local buyer -- includes/buyer.lua: the two lean on each other
local order = { kept = {}, records = {}, moved = {}, changed = {}, key = KEYS[3] }

-- Format and status, which are the first two bytes whatever the form.
local function form_of(kept)
  return string.byte(kept, 1, 2)
end

local function flatten(lines)
  local flat = {}
  for i, line in ipairs(lines) do
    local n = 4 * i
    flat[n - 3], flat[n - 2], flat[n - 1], flat[n] = line[1], line[2], line[3], line[4]
  end
  return flat
end

-- The line id that the line at `n` of flat lines has if its sender gave it none.
local function position_text(n)
  return n == 1 and '1' or integer_text((n + 3) / 4)
end

-- The lines and the units of an open hold, which its bytes end with.
local function read_lines(kept, after)
  if string.sub(kept, after + 1, after + 2) == ONE_LINE_HEAD then -- as almost all: read without the tables around it
    local behind, line_id, sku, quantity, price = cmsgpack.unpack_limit(kept, 4, after + 2)
    if behind == #kept - 1 then return { line_id, sku, quantity, price }, NONE end -- one byte is left: no units
  end
  local lines, units = cmsgpack.unpack(string.sub(kept, after + 1))
  return flatten(lines), units
end

-- Beside the record's fields it has the place where its sequence ends: what is before that, an ended order keeps as well.
local SEQUENCE_END = PAYMENTS + 1

local function read_open(kept)
  local sequence_end, _, status, channel, buyer_id, reference, expected, sequence = cmsgpack.unpack_limit(
    kept, SEQUENCE)
  local after, created, held_until, discount, freight, amount, currency = cmsgpack.unpack_limit(
    kept, CURRENCY - SEQUENCE, sequence_end)
  local lines, units = read_lines(kept, after)
  return {
    ORDER_FORMAT, status, channel, buyer_id, reference, expected, sequence, created, held_until, discount, freight,
    amount, currency, lines, units, 1, sequence, 0, NONE, sequence_end,
  }
end

local function read_ended(kept)
  local _, status, channel, buyer_id, reference, expected, sequence, created, seconds, discount, freight, changes,
    payment_id, until_settled, lines = cmsgpack.unpack(kept)
  local amount = freight - discount
  for n = 1, #lines, 4 do
    if lines[n] == '' then lines[n] = position_text(n) end
    amount = amount + lines[n + 2] * lines[n + 3]
  end
  created = created + state.made_at
  local settled_at, payments = 0, NONE
  if payment_id ~= '' then
    settled_at = created + until_settled
    payments = { { payment_id, amount, state.currency, payment_fate.SETTLED, settled_at } }
  end
  return {
    ORDER_FORMAT, status, channel, buyer_id, reference, expected, sequence, created, created + seconds * 1000, discount,
    freight, amount, state.currency, lines, NONE, 2, sequence + changes, settled_at, payments,
  }
end

local function read_whole(kept)
  local record = { cmsgpack.unpack(kept) }
  record[LINES] = flatten(record[LINES])
  return record
end

local function read_record(kept)
  local format, status = form_of(kept)
  if format == ENDED_FORMAT then return read_ended(kept) end
  if format ~= ORDER_FORMAT then error('an order is of a format that this script does not read') end
  return status == order_status.HELD and read_open(kept) or read_whole(kept)
end

-- Read the orders that are named, those that moved out of their buyers' rows too.
function order.load(digests)
  local parts, moved = {}, {}
  for i, digest in ipairs(digests) do parts[i] = buyer.part_of(digest) end
  buyer.load(parts)
  for i, digest in ipairs(digests) do
    if order.kept[digest] == nil then
      local kept, has_moved_orders = buyer.kept_in_row(parts[i], digest)
      order.kept[digest] = kept or false
      if not kept and has_moved_orders then moved[#moved + 1] = digest end
    end
  end
  for i, kept in ipairs(hash_get(order.key, moved)) do
    if kept then
      order.kept[moved[i]] = kept
      order.moved[moved[i]] = true
    end
  end
end

function order.find(digest)
  local record, kept = order.records[digest], order.kept[digest]
  if kept == nil then
    order.load({ digest })
    kept = order.kept[digest]
  end
  if kept and not record then
    record = read_record(kept)
    order.records[digest] = record
  end
  return record
end

-- Whether there is such an order and it is an open hold; to look at its bytes is enough.
function order.is_held(digest)
  if order.kept[digest] == nil then order.load({ digest }) end
  local kept = order.kept[digest]
  return kept and select(2, form_of(kept)) == order_status.HELD
end

-- The order, or nil; also nil once its time to be read here is over.
function order.get(digest, retention_ms)
  if state.closed_at > 0 and now >= state.closed_at + retention_ms then return nil end
  return order.find(digest)
end

-- The order if it can be read here, or is still an open hold: that one can be paid or cancelled for as long as it is.
function order.get_to_end(digest, retention_ms)
  local record = order.find(digest)
  if record and record[STATUS] == order_status.HELD then return record end
  return order.get(digest, retention_ms)
end

-- A line, packed. A batch's are mostly alike, so that the last one of each SKU is remembered.
local last_lines = {}

local function pack_line(line_id, sku, quantity, price)
  local last = last_lines[sku]
  if not last or last[1] ~= line_id or last[2] ~= quantity or last[3] ~= price then
    last = { line_id, quantity, price, LINE_HEADER .. cmsgpack.pack(line_id, sku, quantity, price) }
    last_lines[sku] = last
  end
  return last[4]
end

local function pack_lines(flat)
  local pieces, count = {}, 0
  for n = 1, #flat, 4 do
    count = count + 1
    pieces[count] = pack_line(flat[n], flat[n + 1], flat[n + 2], flat[n + 3])
  end
  return pack_array(count, pieces)
end

local function pack_whole(record)
  return RECORD_HEADER .. cmsgpack.pack(unpack(record, 1, CURRENCY)) .. pack_lines(record[LINES])
    .. cmsgpack.pack(unpack(record, UNITS, PAYMENTS))
end

-- An order's whole record, packed, as answers have it.
function order.pack_record(digest)
  local record = order.find(digest)
  local kept = order.kept[digest]
  local format, status = form_of(kept)
  if format == ENDED_FORMAT then return pack_whole(record) end
  if status ~= order_status.HELD then return RECORD_HEADER .. kept end
  return RECORD_HEADER .. kept .. FIRST_VERSION .. cmsgpack.pack(record[SEQUENCE]) .. NOT_SETTLED_NOR_PAID
end

-- A copy of an order that a state change is about to make, with the number that this change will take.
function order.next_version(before, status)
  local after = { unpack(before, 1, PAYMENTS) }
  after[STATUS] = status
  after[VERSION] = before[VERSION] + 1
  after[CHANGED_SEQUENCE] = journal.next_sequence()
  return after
end

-- Put a new order, as what is kept of it, into its buyer's row.
function order.insert(buyer_part, order_part, digest, kept)
  order.kept[digest] = nil -- somebody may have asked before it was there
  buyer.add_order(buyer_part, order_part, digest, kept)
end

-- Put an order's next state in the place of the one before: what is `kept` of it, and its whole record, packed, in the
-- journal entry {kind, digest, order}, with `more`, packed, behind them where the kind has it.
function order.change(digest, kind, packed, kept, more)
  journal.append_packed((more and FOUR or THREE) .. pack_cached(kind) .. DIGEST_HEADER .. digest, packed, more or '')
  local before = order.moved[digest] and order.find(digest)
  order.kept[digest], order.records[digest] = kept, nil
  if before then
    order.changed[digest] = true
    buyer.recount_moved(digest, before, order.find(digest))
  else
    buyer.change_order(digest, kept)
  end
end

-- The same of an order that had ended before: it is kept whole from then on. Returns its record, packed.
function order.replace(digest, after, kind)
  local packed = pack_whole(after)
  order.change(digest, kind, packed, string.sub(packed, #RECORD_HEADER + 1))
  return packed
end

-- Take an order out of its buyer's row, into the hash of those that have moved.
function order.move_out(digest)
  order.moved[digest] = true
  order.changed[digest] = true
  return order.find(digest)
end

-- Whether an order's units count for its buyer's limits.
function order.counts(record)
  return record[STATUS] == order_status.HELD or record[STATUS] == order_status.SETTLED
end

-- Add a payment {payment_id, amount, currency} to a copy made by next_version.
function order.add_payment(record, payment, fate)
  local payments = { unpack(record[PAYMENTS]) }
  payments[#payments + 1] = { payment[1], payment[2], payment[3], fate, now }
  record[PAYMENTS] = payments
end

function order.find_payment(record, payment_id)
  for _, payment in ipairs(record[PAYMENTS]) do
    if payment[1] == payment_id then return payment end
  end
  return nil
end

function order.pack()
  local changed = {}
  for digest in pairs(order.changed) do
    changed[#changed + 1] = digest
    changed[#changed + 1] = order.kept[digest]
  end
  return function() call_in_pieces('HSET', order.key, changed) end
end
