// node -r ./loopback.cjs: servers that name no host listen on this machine only.
const { Server } = require("node:net");
const { listen } = Server.prototype;
Server.prototype.listen = function (...given) {
  if (given[0] && typeof given[0] === "object") given[0] = { host: "127.0.0.1", ...given[0] };
  else if (typeof given[1] !== "string") given.splice(1, given[1] === undefined ? 1 : 0, "127.0.0.1");
  return listen.apply(this, given);
};
