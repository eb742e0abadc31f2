-- name: newest
-- The number of the newest feed row, 0 where there is none.
SELECT feed_sequence FROM counters;

-- name: page_after
-- Feed rows behind a number, in order. One statement and so one snapshot: see persister.py on why it misses none.
SELECT feed_sequence, row FROM feed WHERE feed_sequence > $1 ORDER BY feed_sequence LIMIT $2;

-- name: page_after_of_change
-- Feed rows of one kind of change behind a number, in order.
SELECT feed_sequence, row FROM feed WHERE change = $3 AND feed_sequence > $1 ORDER BY feed_sequence LIMIT $2;

-- name: acknowledge
-- Remember how far an owner has taken rows over, never going back; answers what is remembered now.
INSERT INTO acknowledgements (role, owner, feed_sequence, at) VALUES ($1, $2, $3, now())
ON CONFLICT (role, owner) DO UPDATE
SET feed_sequence = greatest(acknowledgements.feed_sequence, excluded.feed_sequence),
    at = CASE WHEN excluded.feed_sequence > acknowledgements.feed_sequence THEN excluded.at ELSE acknowledgements.at END
RETURNING feed_sequence;

-- name: acknowledged
-- How far an owner has taken rows over.
SELECT feed_sequence FROM acknowledgements WHERE role = $1 AND owner = $2;

-- name: setting
-- A value that was made once for this ledger.
SELECT value FROM settings WHERE name = $1;
