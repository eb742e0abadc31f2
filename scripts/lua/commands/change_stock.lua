-- change_stock: apply a stock document, its changes in order, all or none, once for its document_id.
--
-- [change_stock, document_id, body digest, {{sku, source, target, quantity}, …}]; an empty pool is outside the sale
-- DONE, REPEATED · IDEMPOTENCY_KEY_REUSED · SALE_CLOSED · SKU_NOT_FOUND {sku} · CONFLICT {sku, reason}
commands.change_stock = {}

local SKU_QUANTITY_MAX = 1e9

function commands.change_stock.needs(wanted, document_id, _, changes)
  table.insert(wanted.document, document_id)
  for _, change in ipairs(changes) do table.insert(wanted.sku, change[1]) end
end

-- Try the changes on numbers of their own, so that nothing is changed if one of them fails.
local function refuse_changes(changes)
  local units, allocated = {}, {}
  for _, change in ipairs(changes) do
    local sku, source, target, quantity = change[1], change[2], change[3], change[4]
    local row = stock.row(sku)
    if not row then return { code.SKU_NOT_FOUND, sku } end
    local pools = units[sku] or {}
    units[sku] = pools
    allocated[sku] = allocated[sku] or row[ALLOCATED]
    if source ~= '' then
      pools[source] = (pools[source] or stock.in_pool(row, source)) - quantity
      if pools[source] < 0 then
        return { code.CONFLICT, sku, 'fewer units are in ' .. source .. ' than would be taken out' }
      end
    end
    if target ~= '' then pools[target] = (pools[target] or stock.in_pool(row, target)) + quantity end
    if source == '' then allocated[sku] = allocated[sku] + quantity end
    if target == '' then allocated[sku] = allocated[sku] - quantity end
    if allocated[sku] > SKU_QUANTITY_MAX then
      return { code.CONFLICT, sku, 'more than 10^9 units would be allocated' }
    end
  end
  return nil
end

function commands.change_stock.apply(document_id, body_digest, changes)
  local known = document.get(document_id)
  if known then
    if known ~= body_digest then return { code.IDEMPOTENCY_KEY_REUSED } end
    return { code.REPEATED }
  end
  if state.status == 'closed' then return { code.SALE_CLOSED } end
  local refusal = refuse_changes(changes)
  if refusal then return refusal end

  local moved = {}
  for _, change in ipairs(changes) do
    local sku, source, target, quantity = change[1], change[2], change[3], change[4]
    if source ~= '' then
      stock.add(sku, source, -quantity)
      moved[#moved + 1] = { sku, source, -quantity }
    else
      stock.count(sku, ALLOCATED, quantity)
    end
    if target ~= '' then
      stock.add(sku, target, quantity)
      moved[#moved + 1] = { sku, target, quantity }
    else
      stock.count(sku, ALLOCATED, -quantity)
    end
  end
  state.set('version', state.version + 1)
  document.put(document_id, body_digest)
  journal.append({ entry.STOCK_CHANGED, state.version, document_id, moved })
  return { code.DONE }
end
