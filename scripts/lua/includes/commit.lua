-- commit: write what the batch has changed. A failed script is not rolled back, so everything is packed, and every
--         count checked, before the first write; and Redis refuses for want of memory or disk at the first or not at all.
local function commit()
  local parts = { journal, stock, order, buyer, due }
  if document then parts[#parts + 1] = document end
  if definition then parts[#parts + 1] = definition end
  parts[#parts + 1] = state -- last: journal sets its clock
  local writes = {}
  for i, part in ipairs(parts) do writes[i] = part.pack() end
  for _, write in ipairs(writes) do write() end
end
