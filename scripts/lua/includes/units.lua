-- units: taking an order's units out of their pools, and giving them back.

-- Where the units of `lines` would come from: a channel's own pool first, the rest from `shared`.
-- Returns the units [[sku, pool, quantity], …], or nil and the SKU of the first line that is short.
local function find_units(lines, channel)
  local units, taken = {}, {}
  for _, line in ipairs(lines) do
    local sku, wanted = line[2], line[3]
    local row = stock.row(sku)
    local used = taken[sku]
    if not used then
      used = { own = 0, shared = 0 }
      taken[sku] = used
    end
    local own = math.min(wanted, (row[POOLS][channel] or 0) - used.own)
    local shared = wanted - own
    if shared > (row[POOLS].shared or 0) - used.shared then return nil, sku end
    used.own = used.own + own
    used.shared = used.shared + shared
    if own > 0 then units[#units + 1] = { sku, channel, own } end
    if shared > 0 then units[#units + 1] = { sku, 'shared', shared } end
  end
  return units
end

-- Move units from their pools to a column: HELD, or SETTLED for an order that is reinstated.
local function take_units(units, column)
  for _, taken in ipairs(units) do
    stock.add(taken[1], taken[2], -taken[3])
    stock.count(taken[1], column, taken[3])
  end
end

-- Give held units back to the pools they came from; out of the sale if it has closed. Returns whether they returned.
local function return_units(units)
  local open = state.status ~= 'closed'
  for _, taken in ipairs(units) do
    stock.row(taken[1])
    stock.count(taken[1], HELD, -taken[3])
    if open then
      stock.add(taken[1], taken[2], taken[3])
    else
      stock.count(taken[1], ALLOCATED, -taken[3])
    end
  end
  return open
end

-- End a hold without payment: CANCELLED or EXPIRED. Returns the order after it.
local function give_back(digest, before, status, kind)
  local after = order.next_version(before)
  after[STATUS] = status
  local returned = return_units(before[UNITS])
  buyer.count(before, -1)
  due.remove(digest)
  order.put(digest, after)
  journal.append({ kind, digest, after, returned })
  return after
end
