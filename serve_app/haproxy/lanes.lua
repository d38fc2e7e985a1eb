-- Asks the ingress which names lead to which lane, and finds a request's lane by the name that it gives.
-- Loaded by HAProxy with the address of its own frontend, the secret that its rules let pass, and how many bytes of a
-- body they wait for.

local host, port, secret, looked_at = ...

-- A line of the answer: a task, a name, and the models that may answer, each with its weight, its backend ("-" for
-- none) and its balancing, all separated by tabs. The model's name is "=" where it is the one that was asked for.
local tasks = { chat = {}, caption = {} }

local function parsed(text)
    local found = { chat = {}, caption = {} }
    for line in text:gmatch("[^\n]+") do
        local task, name, rest = line:match("^(%S+)\t(%S+)\t(.*)$")
        if found[task] then
            local models, total = {}, 0
            for model, weight, backend, balancing in rest:gmatch("(%S+) (%S+) (%S+) (%S+)") do
                total = total + tonumber(weight)
                models[#models + 1] = { model = model, upto = total, backend = backend, balancing = balancing }
            end
            found[task][name] = { models = models, total = total }
        end
    end
    return found
end

local function ask()
    local answer = core.httpclient():get {
        url = "http://" .. host .. ":" .. port .. "/-/lanes",
        headers = { ["x-serve-app-lanes"] = { secret }, ["host"] = { host } },
        timeout = 2000,
    }
    if answer.status == 200 then
        tasks = parsed(answer.body)
    elseif answer.status == 404 then -- what stands at this address is no ingress of ours
        tasks = { chat = {}, caption = {} }
    end -- else it is away: its models may well be there
end

core.register_task(function()
    math.randomseed(core.now().usec)
    while true do
        pcall(ask)
        core.msleep(500)
    end
end)

core.register_action("serve_app_lane", { "http-req" }, function(txn)
    local name = txn:get_var("txn.sa_name")
    local task = txn.sf:path() == "/v1/captions" and "caption" or "chat"
    local lane = tasks[task][name]
    if not lane then
        return
    end
    local dice = math.random() * lane.total
    for _, candidate in ipairs(lane.models) do
        if dice < candidate.upto then
            if candidate.model ~= "=" then
                txn:set_var("txn.sa_drawn", candidate.model)
            end
            if candidate.backend ~= "-" then
                txn:set_var("txn.sa_lane", candidate.backend)
                txn:set_var("txn.sa_balancing", candidate.balancing)
            end
            return
        end
    end
end)

-- A form names the model in a field of its own, which clients send before the image.

local FORM_HEAD = 2048 -- bytes in which that field begins

local function value_in(form, name)
    local _, stop = form:find('name="' .. name .. '"', 1, true)
    local _, head = form:find("\r\n\r\n", stop or #form + 1, true)
    local boundary = form:match("^%-%-[^\r\n]+")
    if not (stop and head and boundary) then
        return nil
    end
    return head + 1, (form:find("\r\n" .. boundary, head + 1, true) or #form + 1) - 1
end

core.register_action("serve_app_form", { "http-req" }, function(txn)
    local form = (txn.sf:req_body() or ""):sub(1, FORM_HEAD)
    local start, stop = value_in(form, "model")
    if start and stop < #form then -- else its end isn't there
        txn:set_var("txn.sa_name", form:sub(start, stop))
    end
end)

-- What a replica's caches may have of a request: its first image, else how its conversation began. An instruction
-- is no part of it where there is an image, because every caption has the same one.

local IMAGE_CHARACTERS = 32768 -- of an image that may go on beyond what HAProxy holds of the body

-- The fields of the bodies that have an image's address or its base64 in a text.
local IMAGE_FIELDS = { '"url"', '"b64"', '"image"', '"images"', '"image_url"' }

local function image_in(body)
    local first
    for _, field in ipairs(IMAGE_FIELDS) do
        local from = 1
        while true do
            local _, stop = body:find(field, from, true)
            if not stop or (first and stop > first) then
                break
            end
            local start = body:match("^%s*:%s*%[?%s*\"()", stop + 1)
            if start then
                first = start
                break
            end
            from = stop + 1
        end
    end
    if first then
        local stop = body:find('"', first, true) or #body + 1
        return body:sub(first, math.min(stop - 1, first + IMAGE_CHARACTERS - 1))
    end
end

local MOST_PARTS = 8 -- of a message; most have one

local function beginning_of(conversation, txn)
    local function text(path)
        return txn.c:json_query(conversation, path)
    end
    local function words(message)
        local found = text(message .. ".content")
        local number = 0
        while not found and number < MOST_PARTS do -- a list of parts
            found = text(message .. ".content[" .. number .. "].text")
            number = number + 1
        end
        return found or ""
    end
    local turns = words("$.messages[0]")
    local role = text("$.messages[0].role")
    if role == "system" or role == "developer" then
        turns = turns .. words("$.messages[1]")
    end
    return turns .. (text("$.prompt") or text("$.inputs") or "")
end

core.register_action("serve_app_key", { "http-req" }, function(txn)
    local body = (txn.sf:req_body() or ""):sub(1, tonumber(looked_at)) -- more may be there, as chance has it
    local start, stop = value_in(body, "image")
    local key = start and body:sub(start, math.min(stop, start + IMAGE_CHARACTERS - 1))
        or image_in(body) or beginning_of(body, txn)
    if #key > 0 then
        txn:set_var("txn.sa_key", tostring(txn.c:xxh64(key)))
    end
end)
