import "./wscast.js"

export const connect = globalThis.wscast.connect
