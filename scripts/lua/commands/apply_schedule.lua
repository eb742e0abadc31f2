-- apply_schedule: nothing by itself; every batch applies the schedule before its commands.
--
-- [apply_schedule]
-- DONE
commands.apply_schedule = {}

function commands.apply_schedule.apply()
  return { code.DONE }
end
