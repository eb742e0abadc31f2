-- recent_commands: operators' commands that were applied a short while ago, by the ids that their senders gave them. One
--                  whose answer was lost is sent again as it was, and one that was held up on its way may come after its
--                  repeat: neither may happen twice, whatever others have done in between. It outlives the sale's
--                  deletion, and orders need it not: their records answer.
--
-- state.recent_commands  packed {{id, time, reply}, …}, oldest first
local RECENT_COMMANDS_MS = 300000 -- beyond what the settings let a request and its last call be under way
local RECENT_COMMANDS_MAX = 200

local verbs_with_id = { define = true, open = true, pause = true, resume = true, close = true, delete = true }

recent_commands = { rows = nil }

function recent_commands.read()
  if not recent_commands.rows then
    recent_commands.rows = state.recent_commands == '' and {} or cmsgpack.unpack(state.recent_commands)
  end
  return recent_commands.rows
end

-- What was answered when this command was applied; nil if it was not.
function recent_commands.reply_to(verb, id)
  if not verbs_with_id[verb] or id == '' then return nil end
  for _, row in ipairs(recent_commands.read()) do
    if row[1] == id then return row[3] end
  end
  return nil
end

function recent_commands.remember(reply, verb, id)
  if not verbs_with_id[verb] or id == '' or reply[1] ~= code.DONE then return end
  local kept, rows = {}, recent_commands.read()
  for i, row in ipairs(rows) do
    if now - row[2] < RECENT_COMMANDS_MS and #rows - i < RECENT_COMMANDS_MAX - 1 then kept[#kept + 1] = row end
  end
  kept[#kept + 1] = { id, now, reply }
  recent_commands.rows = kept
  state.set('recent_commands', cmsgpack.pack(kept))
end
