-- Asks the ingress which names lead to which lane, and finds a request's lane by the name that it gives.
-- Loaded by HAProxy with the address of its own frontend and the secret that its rules let pass.

local host, port, secret = ...

-- A line of the answer: a task, a name, and the models that may answer, each with its weight and its backend ("-"
-- for none), all separated by tabs. The model's name is "=" where it is the one that was asked for.
local tasks = { chat = {}, caption = {} }

local function parsed(text)
    local found = { chat = {}, caption = {} }
    for line in text:gmatch("[^\n]+") do
        local task, name, rest = line:match("^(%S+)\t(%S+)\t(.*)$")
        if found[task] then
            local models, total = {}, 0
            for model, weight, backend in rest:gmatch("(%S+) (%S+) (%S+)") do
                total = total + tonumber(weight)
                models[#models + 1] = { model = model, upto = total, backend = backend }
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
            end
            return
        end
    end
end)
