-- definition: the sale's definition as JSON, which the script keeps but does not look into.
definition = { key = KEYS[7], changed = nil }

function definition.read()
  return definition.changed or redis.call('GET', definition.key) or ''
end

function definition.set(text)
  definition.changed = text
end

function definition.pack()
  return function()
    if definition.changed == '' then
      redis.call('DEL', definition.key)
    elseif definition.changed then
      redis.call('SET', definition.key, definition.changed)
    end
  end
end
