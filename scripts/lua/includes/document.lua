-- document: which stock documents have been applied, each by its id with the digest of its body.
document = { digests = {}, changed = {}, cleared = false, key = KEYS[6] }

function document.load(ids)
  local missing = {}
  for _, id in ipairs(ids) do
    if document.digests[id] == nil then missing[#missing + 1] = id end
  end
  for i, digest in ipairs(hash_get(document.key, missing)) do
    document.digests[missing[i]] = not document.cleared and digest
  end
end

function document.get(id)
  if document.digests[id] == nil then document.load({ id }) end
  return document.digests[id] or nil
end

function document.put(id, digest)
  document.digests[id] = digest
  document.changed[id] = digest
end

function document.clear()
  document.cleared = true
  document.changed = {}
  document.digests = {}
end

function document.pack()
  local changed = {}
  for id, digest in pairs(document.changed) do
    changed[#changed + 1] = id
    changed[#changed + 1] = digest
  end
  return function()
    if document.cleared then redis.call('DEL', document.key) end
    call_in_pieces('HSET', document.key, changed)
  end
end
