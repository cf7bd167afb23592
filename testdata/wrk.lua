-- What wrk asks of cmd/demo, and the judgement of each answer. The argument is
-- the method: GET / or POST /echo. With one thread (-t1) the last line says it.

local sent = string.rep("request of wrk\n", 100)
local thread

function setup(t)
	thread = t
end

function init(args)
	wrong, generations, seen = 0, 0, {}
	if args[1] == "POST" then
		wrk.method, wrk.path, wrk.body = "POST", "/echo", sent
		generations = -1 -- the answers do not tell
	end
end

local function right(body)
	if wrk.method == "POST" then
		return body == sent
	end
	local generation = body:match("^pid=%d+ generation=(%d+) version=%S+\n$")
	if generation and not seen[generation] then
		seen[generation] = true
		generations = generations + 1
	end
	return generation ~= nil
end

function response(status, headers, body)
	if status == 200 and not right(body) then
		wrong = wrong + 1
	end
end

function done(summary)
	local e = summary.errors
	local lost = e.connect + e.read + e.write + e.timeout + e.status + thread:get("wrong")
	print(string.format("handover requests=%d lost=%d generations=%d", summary.requests, lost, thread:get("generations")))
end
