-- keys: KEYS of every script, in the order of PartitionKeys in engine/partition/keyspace.py.
local function name_keys()
  state.key, stock.key, order.key, due.key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
  buyer.key, document.key, definition.key, journal.key = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
end
