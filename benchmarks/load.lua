-- What wrk sends and reports: random keys from 1 to the first argument (0: the path as it is), with the
-- second argument as If-None-Match (none: without), and one line of JSON. wrk counts a status below 200 or
-- above 399 as an error.
local requests = {}

function init(args)
   math.randomseed(20260101)
   if args[2] then
      wrk.headers["If-None-Match"] = args[2]
   end
   for key = 1, tonumber(args[1]) do
      requests[key] = wrk.format("GET", wrk.path .. key)
   end
   if #requests == 0 then
      requests[1] = wrk.format("GET", wrk.path)
   end
end

function request()
   return requests[math.random(#requests)]
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "seconds": %.6f, "bad": %d, "broken": %d, "p50": %.4f, "p99": %.4f}\n',
      summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
