-- note_persisted: the ledger holds everything up to a sequence number: trim the journal behind it, but for the last
--                 entries, which a fail-over of the ledger to a lagging standby may want again.
--
-- [note_persisted, sequence, entries to keep]
-- DONE · CONFLICT {'sequence', reason} where the ledger claims more than has happened
commands.note_persisted = {}

function commands.note_persisted.apply(sequence, keep)
  if sequence > state.sequence then
    return { code.CONFLICT, 'sequence', 'the ledger is ahead of the partition' }
  end
  if sequence > state.persisted then
    state.set('persisted', sequence)
    journal.trim_below = sequence - keep + 1
  end
  return { code.DONE }
end
