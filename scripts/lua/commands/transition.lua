-- open, pause, resume, close: a transition already in force is REPEATED, any other that does not fit a CONFLICT.
--
-- [open, command id] · [pause, command id] · [resume, command id] · [close, command id]
-- DONE, REPEATED · CONFLICT {'status', reason}
local function transition(from, to, apply)
  return {
    apply = function()
      if state.status == to then return { code.REPEATED } end
      if from and state.status ~= from then
        return { code.CONFLICT, 'status', 'the sale is ' .. state.status }
      end
      apply()
      return { code.DONE }
    end,
  }
end

commands.open = transition('draft', 'open', function() open_sale(false) end)

commands.pause = transition('open', 'paused', function()
  set_status('paused')
  journal.append({ entry.SALE_PAUSED, state.version })
end)

commands.resume = transition('paused', 'open', function()
  set_status('open')
  journal.append({ entry.SALE_RESUMED, state.version })
end)

commands.close = transition(nil, 'closed', function() close_sale(false) end)
