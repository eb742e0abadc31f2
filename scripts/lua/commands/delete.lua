-- delete: delete a draft. The partition's numbers go on if a sale of the same name is made later.
--
-- [delete, command id]
-- DONE · CONFLICT {'status', reason}
commands.delete = {}

function commands.delete.apply()
  if state.status ~= 'draft' then return { code.CONFLICT, 'status', 'the sale is ' .. state.status } end
  local moved = remove_unsold()
  for _, sku in ipairs(stock.load_all()) do stock.remove(sku) end
  state.set('status', 'deleted')
  journal.append({ entry.SALE_DELETED, moved })
  definition.set('')
  document.clear()
  return { code.DONE }
end
