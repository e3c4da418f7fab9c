#!lua name=waterspout
-- A channel's history in Redis, and leases: a library of functions, and where the server has none, a script that is
-- given the name of the function as its last argument.
--
-- A channel has a stream of entries `offset payload`, whose ids tell the time, and a meta key that outlives it:
-- "epoch top renewal messages retention". Times are in milliseconds; from `renewal` on both keys have to be given new
-- times to live. Numbers are handled as text wherever that will do: turning one into the other is what is slow here.
--
-- Old and new programs share a server: a function whose arguments or reply change gets another name, and a change of
-- any kind a higher version.

local VERSION = 2
local MAX_BYTES = 1048576 -- of one payload
local MAX_MESSAGES = 1000000000
local MAX_RETENTION = 10 * 365 * 86400000
local META_OUTLIVES = 7 * 86400000
local KEY_SECONDS = 300 -- how long an idempotency key is known
local TRIM_EVERY = 100 -- messages: as many as a node of a stream holds

local function raise(...)
  error(redis.error_reply('ERR ' .. string.format(...)), 0)
end

-- Epoch, top, renewal, messages, retention: text, but for the top.
local function parsed(meta)
  local epoch, top, renewal, messages, retention = string.match(meta, '^(%x+) (%d+) (%d+) (%d+) (%d+)$')
  if not epoch then
    raise('the meta key of the channel holds something else')
  end
  return epoch, tonumber(top), renewal, messages, retention
end

local function new_epoch(channel)
  local time = redis.call('TIME')
  return string.sub(redis.sha1hex(time[1] .. ' ' .. time[2] .. ' ' .. channel), 1, 10)
end

-- Put payloads[first] and all behind it into the log and publish them. All of them, or none and an error.
-- Returns the epoch and the offset of the last one.
local function append(meta_key, log_key, channel, messages, retention, payloads, first)
  for i = first, #payloads do
    if #payloads[i] > MAX_BYTES then
      raise('a message of %d bytes, the limit is %d', #payloads[i], MAX_BYTES)
    end
  end
  local call = redis.call
  local meta = call('GET', meta_key)
  local epoch, top, renewal, _, remembered
  if meta then
    epoch, top, renewal, _, remembered = parsed(meta)
  else
    -- What is in the stream, if anything, is of an epoch that nobody remembers.
    call('DEL', log_key)
    epoch, top = new_epoch(channel), 0
  end
  local count = #payloads - first + 1
  local last = string.format('%d', top + count)
  local offset = count == 1 and last or string.format('%d', top + 1)
  -- What the server may refuse comes first, in an order in which it can be undone.
  local id = call('XADD', log_key, 'MAXLEN', '~', messages, '*', offset, payloads[first])
  local time = string.sub(id, 1, 13)
  -- Texts of 13 digits are in the order of their numbers.
  local due = remembered ~= retention or renewal <= time
  local result
  if due then
    renewal = string.format('%d', time + math.ceil(retention / 10))
  end
  local new_meta = epoch .. ' ' .. last .. ' ' .. renewal .. ' ' .. messages .. ' ' .. retention
  if due then
    result = redis.pcall('SET', meta_key, new_meta, 'PX', math.ceil(retention * 1.1) + META_OUTLIVES)
  else
    result = redis.pcall('SET', meta_key, new_meta, 'KEEPTTL')
  end
  local begin = '\30' .. epoch .. '-'
  if not result.err then
    result = redis.pcall('PUBLISH', channel, begin .. offset .. '\n' .. payloads[first])
    if type(result) == 'number' then
      result = nil
    elseif meta then
      call('SET', meta_key, meta, 'KEEPTTL')
    else
      call('DEL', meta_key)
    end
  end
  if result then
    call('XDEL', log_key, id)
    error(result, 0)
  end
  for i = 1, count - 1 do
    offset = string.format('%d', top + 1 + i)
    call('XADD', log_key, 'MAXLEN', '~', messages, '*', offset, payloads[first + i])
    call('PUBLISH', channel, begin .. offset .. '\n' .. payloads[first + i])
  end
  if due then
    call('PEXPIRE', log_key, math.ceil(retention * 1.1))
  end
  if (top + count) % TRIM_EVERY < count then
    call('XTRIM', log_key, 'MINID', '~', string.format('%d', time - retention))
  end
  return epoch, last
end

-- The same, but for those whose idempotency key is known. Returns the positions of all, in order.
local function append_once(meta_key, log_key, channel, messages, retention, payloads, first, keys, first_key)
  local position_of, fresh, places = {}, {}, {}
  for i = first_key, #keys do
    local key = keys[i]
    if position_of[key] == nil then
      position_of[key] = redis.call('GET', key)
      if not position_of[key] then
        fresh[#fresh + 1] = payloads[first + i - first_key]
        places[#places + 1] = key
      end
    end
  end
  if #fresh > 0 then
    local epoch, last = append(meta_key, log_key, channel, messages, retention, fresh, 1)
    for i, key in ipairs(places) do
      position_of[key] = epoch .. '-' .. last - #fresh + i
      redis.call('SET', key, position_of[key], 'EX', KEY_SECONDS)
    end
  end
  local positions = {}
  for i = first_key, #keys do
    positions[#positions + 1] = position_of[keys[i]]
  end
  return positions
end

-- An epoch without messages.
local function begin(meta_key, epoch, messages, retention)
  local meta = epoch .. ' 0 0000000000000 ' .. messages .. ' ' .. retention
  redis.call('SET', meta_key, meta, 'PX', retention + META_OUTLIVES)
end

local functions = {}

-- KEYS: meta, log and, if the messages have them, the idempotency key of each; ARGV: channel, messages, retention,
-- payload... Returns the position of the last message; with idempotency keys those of all.
function functions.waterspout_append(keys, args)
  local meta_key, log_key, channel, messages, retention = keys[1], keys[2], args[1], args[2], args[3]
  if #keys > 2 then
    return append_once(meta_key, log_key, channel, messages, retention, args, 4, keys, 3)
  end
  local epoch, last = append(meta_key, log_key, channel, messages, retention, args, 4)
  return epoch .. '-' .. last
end

-- KEYS: meta, log; ARGV: epoch and offset behind which to read, limit, retention. Returns the epoch, the top, the time
-- and the entries, newest first; nothing where no epoch is known.
function functions.waterspout_read(keys, args)
  local meta = redis.call('GET', keys[1])
  if not meta then
    return false
  end
  local epoch, top = parsed(meta)
  local count = tonumber(args[3])
  if epoch == args[1] then
    count = math.min(count, top - tonumber(args[2]))
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local entries = {}
  if count > 0 then
    entries = redis.call('XREVRANGE', keys[2], '+', math.max(now - tonumber(args[4]), 0), 'COUNT', count)
  end
  return { epoch, top, now, entries }
end

-- KEYS: meta, log; ARGV: channel, messages, retention. Makes an epoch if none is known. Returns the top.
function functions.waterspout_open(keys, args)
  local meta = redis.call('GET', keys[1])
  local epoch, top
  if meta then
    epoch, top = parsed(meta)
  else
    redis.call('DEL', keys[2])
    epoch, top = new_epoch(args[1]), 0
    begin(keys[1], epoch, args[2], args[3])
  end
  return epoch .. '-' .. top
end

-- KEYS: meta, log; ARGV: channel, epoch, offset. A new epoch, if the channel is still in that one and has not come as
-- far: somebody has seen messages that are lost, and their numbers must not be given to others. Returns the top.
function functions.waterspout_renew(keys, args)
  local meta = redis.call('GET', keys[1])
  if not meta then
    return false
  end
  local epoch, top, _, messages, retention = parsed(meta)
  if epoch == args[2] and top < tonumber(args[3]) then
    epoch, top = new_epoch(args[1]), 0
    redis.call('DEL', keys[2])
    begin(keys[1], epoch, messages, retention)
  end
  return epoch .. '-' .. top
end

-- Leases
--
-- The key of a lease holds its holder's token. Who waits for it is a field of a hash, its line: token = "since until",
-- in microseconds.

-- KEYS: lease, line; ARGV: token, time to live, wait. Takes the lease if it is free and nobody is before us in line, or
-- prolongs it if it is ours. Returns 1, or 0 where we have a place in line now, for `wait`.
function functions.waterspout_lease_claim(keys, args)
  local lease, line, token, wait = keys[1], keys[2], args[1], tonumber(args[3])
  local holder = redis.call('GET', lease)
  if holder == token then
    return redis.call('PEXPIRE', lease, args[2])
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local came, first = now, now
  local waiting = redis.call('HGETALL', line)
  for i = 1, #waiting, 2 do
    local since, till = string.match(waiting[i + 1], '^(%d+) (%d+)$')
    since, till = tonumber(since), tonumber(till)
    if till < now then
      redis.call('HDEL', line, waiting[i])
    elseif waiting[i] == token then
      came = since
    else
      first = math.min(first, since)
    end
  end
  if not holder and came <= first then
    redis.call('SET', lease, token, 'PX', args[2])
    redis.call('HDEL', line, token)
    return 1
  end
  if wait > 0 then
    redis.call('HSET', line, token, string.format('%d %d', came, now + wait * 1000))
    if redis.call('PTTL', line) < wait then
      redis.call('PEXPIRE', line, wait)
    end
  end
  return 0
end

-- KEYS: lease, line; ARGV: token, time to live. Returns 1, or 0 if it is not ours any more.
function functions.waterspout_lease_renew(keys, args)
  return redis.call('GET', keys[1]) == args[1] and redis.call('PEXPIRE', keys[1], args[2]) or 0
end

-- KEYS: lease, line; ARGV: token. Returns 1, or 0 if it is not ours any more.
function functions.waterspout_lease_release(keys, args)
  redis.call('HDEL', keys[2], args[1])
  return redis.call('GET', keys[1]) == args[1] and redis.call('DEL', keys[1]) or 0
end

-- For other programs

local function is_utf8(text)
  if not string.find(text, '[\128-\255]') then
    return true
  end
  local patterns = {
    '^[%z\1-\127]+',
    '^[\194-\223][\128-\191]',
    '^\224[\160-\191][\128-\191]',
    '^[\225-\236\238\239][\128-\191][\128-\191]',
    '^\237[\128-\159][\128-\191]',
    '^\240[\144-\191][\128-\191][\128-\191]',
    '^[\241-\243][\128-\191][\128-\191][\128-\191]',
    '^\244[\128-\143][\128-\191][\128-\191]',
  }
  local at = 1
  while at <= #text do
    local first, last
    for _, pattern in ipairs(patterns) do
      first, last = string.find(text, pattern, at)
      if first then
        break
      end
    end
    if not first then
      return false
    end
    at = last + 1
  end
  return true
end

-- cjson takes numbers that JSON does not have, such as nan and 0x1f.
local function is_json(text)
  if not pcall(cjson.decode, text) then
    return false
  end
  local words = string.gsub(string.gsub(text, '\\.', ''), '"[^"]*"', ' ')
  for word in string.gmatch(words, '[%w.+-]+') do
    if word ~= 'true' and word ~= 'false' and word ~= 'null' then
      local whole = string.gsub(string.gsub(word, '[eE][+-]?%d+$', ''), '%.%d+$', '')
      if not string.find(whole, '^%-?[1-9]%d*$') and not string.find(whole, '^%-?0$') then
        return false
      end
    end
  end
  return true
end

local function check_name(what, name)
  if name == '' or #name > 255 or string.find(name, '%c') or not is_utf8(name) then
    raise('%s is 1 to 255 bytes of UTF-8 without control characters', what)
  end
  return name
end

-- A number of seconds or messages as a whole number, the seconds in milliseconds.
local function whole(option, text, unit, limit)
  local number = string.find(text, '^%d+%.?%d*$') and math.ceil(tonumber(text) * unit)
  if not number or number < 1 or number > limit then
    raise('%s is a number above 0, up to %d', option, limit / unit)
  end
  -- Not as 1e+12, which is how Lua writes large ones.
  return string.format('%.0f', number)
end

local function parsed_options(args)
  local given = {}
  local i = 2
  while i <= #args do
    local name, value = string.upper(args[i]), args[i + 1]
    if name == 'JSON' then
      given.JSON = true
      i = i - 1
    elseif name ~= 'EVENT' and name ~= 'KEY' and name ~= 'HISTORY' and name ~= 'RETENTION' then
      raise("unknown option '%s'; there are JSON, EVENT name, KEY key, HISTORY messages, RETENTION seconds", args[i])
    elseif not value then
      raise('%s needs a value', name)
    elseif name == 'EVENT' then
      given.EVENT = check_name('an event name', value)
    elseif name == 'KEY' then
      given.KEY = check_name('an idempotency key', value)
    elseif name == 'HISTORY' then
      given.HISTORY = whole(name, value, 1, MAX_MESSAGES)
    else
      given.RETENTION = whole(name, value, 1000, MAX_RETENTION)
    end
    i = i + 2
  end
  if given.EVENT == 'gap' then
    raise("the event name 'gap' is reserved: it tells readers that messages were lost")
  end
  return given
end

-- The payload in an envelope, where it needs one.
local function enveloped(payload, given)
  if given.JSON then
    if not is_utf8(payload) or not is_json(payload) then
      raise('the payload is not JSON')
    end
  elseif not given.EVENT and string.sub(payload, 1, 1) ~= '\30' then
    return payload
  elseif not is_utf8(payload) then
    raise('a payload with an event, or that begins with the character 30, must be text in UTF-8')
  end
  local event = given.EVENT and '"event":' .. cjson.encode(given.EVENT) .. ',' or ''
  return '\30{' .. event .. '"data":' .. (given.JSON and payload or cjson.encode(payload)) .. '}\n'
end

-- KEYS: channel; ARGV: payload, and any of JSON, EVENT name, KEY key, HISTORY messages, RETENTION seconds.
-- Returns the position.
function functions.waterspout_publish(keys, args)
  if #keys ~= 1 or #args < 1 then
    raise('wrong number of arguments: waterspout_publish 1 channel payload [option ...]')
  end
  local channel = check_name('the name of a channel', keys[1])
  if string.find(channel, ' ', 1, true) then
    raise('the name of a channel has no white space')
  end
  local given = parsed_options(args)
  local payload = enveloped(args[1], given)
  local name = channel
  if not string.find(name, '^[^{]*{[^}]+}') or string.find(name, '^{.*}$') then
    name = '{' .. name .. '}'
  end
  local meta_key, log_key = 'waterspout:meta:' .. name, 'waterspout:log:' .. name
  local meta = redis.call('GET', meta_key)
  local messages, retention = '1000', '3600000'
  if meta then
    local _
    _, _, _, messages, retention = parsed(meta)
  end
  messages, retention = given.HISTORY or messages, given.RETENTION or retention
  if given.KEY then
    local key = 'waterspout:key:' .. name .. ' ' .. given.KEY
    return append_once(meta_key, log_key, channel, messages, retention, { payload }, 1, { key }, 1)[1]
  end
  local epoch, last = append(meta_key, log_key, channel, messages, retention, { payload }, 1)
  return epoch .. '-' .. last
end

function functions.waterspout_version()
  return VERSION
end

-- An error of ours as it is, without where in this file it was raised.
local function guarded(callback)
  return function(keys, args)
    local done, result = pcall(callback, keys, args)
    if not done and type(result) ~= 'table' then
      return redis.error_reply(result)
    end
    return result
  end
end

if redis.register_function then
  -- While a library is loaded there is next to nothing of Lua, so no loop.
  local function register(name, ...)
    redis.register_function({ function_name = name, callback = guarded(functions[name]), flags = { ... } })
  end
  register('waterspout_append')
  register('waterspout_lease_claim')
  -- These take no more memory, and are needed most where there is none.
  register('waterspout_lease_release', 'allow-oom')
  register('waterspout_lease_renew', 'allow-oom')
  register('waterspout_open')
  register('waterspout_publish')
  register('waterspout_read', 'no-writes')
  register('waterspout_renew')
  register('waterspout_version', 'no-writes')
  return
end
return guarded(functions[table.remove(ARGV)])(KEYS, ARGV)
