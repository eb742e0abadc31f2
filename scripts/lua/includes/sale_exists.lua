-- sale_exists: whether the partition has a sale; one whose draft was deleted has not.
local function sale_exists()
  return state.status ~= '' and state.status ~= 'deleted'
end
