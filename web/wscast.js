// wscast.js: the client for browsers. doc/protocol.txt has what it speaks, wscast.d.ts what it offers.
// As a script it makes the global wscast; wscast.mjs is the same as a module.
(() => {
  const bytes = (s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0))
  const base64 = (b) => btoa(Array.from(new Uint8Array(b.buffer ?? b, b.byteOffset ?? 0, b.byteLength), (c) => String.fromCharCode(c)).join(""))
  const seq = (id) => BigInt(id.slice(17))

  class Connection {
    #url; #o; #subs = new Map(); #asked = new Map(); #ref = 0; #tries = 0; #timer; #alive; #ping = 25000
    #socket = null; #stream = null; #blocked = 0; #history = null; #ready = false
    state = "connecting"; reason = ""; onstate = null

    constructor(url, options) {
      this.#url = new URL(url, location.href)
      this.#o = { min: 1000, max: 30000, ...options }
      this.onstate = this.#o.onstate ?? null
      addEventListener("online", this.#now)
      this.#open()
    }

    #now = () => { if (this.state === "waiting") { clearTimeout(this.#timer); this.#open() } }

    #set(state, reason = "") {
      this.state = state
      this.reason = reason
      this.onstate?.(state, reason)
    }

    async #open() {
      this.#set("connecting")
      let token
      try { token = await (typeof this.#o.token === "function" ? this.#o.token() : this.#o.token) } catch (e) { return this.#retry(`no token: ${e}`) }
      if (this.state === "closed") return
      // Where a WebSocket does not get through twice, an event stream may.
      if (this.#blocked > 1 && this.#o.sse !== false && this.#subs.size) { this.#blocked = 0; return this.#listen(token) }
      const url = new URL(this.#url)
      url.protocol = url.protocol.replace("http", "ws")
      const socket = new WebSocket(url, ["wscast.v1.json", ...(token ? ["wscast.token." + token] : [])])
      this.#socket = socket
      const slow = setTimeout(() => socket.close(), 15000)
      socket.onmessage = (e) => socket === this.#socket && this.#hear(JSON.parse(e.data))
      socket.onclose = (e) => {
        clearTimeout(slow)
        if (socket !== this.#socket) return
        if (!this.#ready) this.#blocked++
        this.#retry(e.reason || `closed with ${e.code}`)
      }
      socket.onopen = () => clearTimeout(slow)
    }

    #listen(token) {
      const url = new URL(this.#url)
      url.protocol = url.protocol.replace("ws", "http")
      let oldest
      for (const s of this.#subs.values()) {
        url.searchParams.append("channel", s.channel)
        if (s.id && (!oldest || seq(s.id) < seq(oldest))) oldest = s.id
      }
      url.searchParams.set("envelope", "")
      if (oldest) url.searchParams.set("last_event_id", oldest)
      if (token) url.searchParams.set("token", token)
      const stream = new EventSource(url, { withCredentials: this.#o.credentials ?? false })
      this.#stream = stream
      stream.onopen = () => { this.#tries = 0; this.#set("open", "event stream") }
      stream.onmessage = (e) => this.#message(JSON.parse(e.data))
      stream.addEventListener("incomplete", (e) => this.#subs.get(e.data)?.incomplete())
      stream.onerror = () => { if (stream === this.#stream) this.#retry("the event stream has ended") }
    }

    #hear(m) {
      this.#live()
      if (m.reply === "welcome") {
        this.#ready = true
        this.#tries = this.#blocked = 0
        this.#ping = m.ping || this.#ping
        for (const s of this.#subs.values()) this.#subscribe(s)
        this.#set("open", m.greeting)
      } else if (m.reply || m.error) {
        const asked = this.#asked.get(m.ref)
        this.#asked.delete(m.ref)
        if (m.error) asked?.no(Object.assign(new Error(m.message), { code: m.error }))
        else if (m.reply === "history" && m.messages) this.#history = { left: m.messages, all: [], yes: asked?.yes }
        else asked?.yes(m.reply === "history" ? [] : m)
      } else this.#message(m)
    }

    #message(m) {
      const message = { channel: m.channel, id: m.id, time: new Date(m.time), data: m.data ?? bytes(m.base64) }
      const h = this.#history
      if (h) {
        h.all.push(message)
        if (!--h.left) { this.#history = null; h.yes?.(h.all) }
        return
      }
      const s = this.#subs.get(m.channel)
      if (!s || s.id && s.id.slice(0, 16) === m.id.slice(0, 16) && seq(m.id) <= seq(s.id)) return
      s.id = m.id
      s.onmessage(message)
    }

    #subscribe(s) {
      const from = s.id ? { last_event_id: s.id } : s.since ? { since: s.since } : {}
      this.#ask({ command: "subscribe", channel: s.channel, ...from }).then((m) => {
        if (!m.complete) s.incomplete()
        s.id = m.id
      }, (e) => { if (e.code !== "cut") { this.#subs.delete(s.channel); s.onerror(e) } })
    }

    #ask(command) {
      return new Promise((yes, no) => {
        if (!this.#ready) return no(Object.assign(new Error("not connected"), { code: "cut" }))
        this.#asked.set(++this.#ref, { yes, no })
        this.#socket.send(JSON.stringify({ ...command, ref: this.#ref }))
      })
    }

    // A page does not see pings: where nothing was heard it asks.
    #live() {
      clearTimeout(this.#alive)
      this.#alive = setTimeout(() => {
        if (!this.#ready) return
        this.#ask({ command: "ping" }).catch(() => {})
        this.#alive = setTimeout(() => this.#retry("nothing was heard"), 10000)
      }, this.#ping)
    }

    #drop() {
      clearTimeout(this.#timer); clearTimeout(this.#alive)
      const socket = this.#socket, stream = this.#stream
      this.#socket = this.#stream = this.#history = null
      this.#ready = false
      socket?.close(); stream?.close()
      for (const a of this.#asked.values()) a.no(Object.assign(new Error("the connection was cut"), { code: "cut" }))
      this.#asked.clear()
    }

    // Full jitter: those who were cut off together come back one by one.
    #retry(reason) {
      if (this.state === "closed") return
      this.#drop()
      const wait = Math.random() * Math.min(this.#o.max, this.#o.min * 2 ** this.#tries++)
      this.#timer = setTimeout(() => this.#open(), wait)
      this.#set("waiting", reason)
    }

    subscribe(channel, onmessage, options = {}) {
      const s = { channel, onmessage, id: options.id, since: options.since, onerror: options.onerror ?? console.error,
        incomplete: () => options.onincomplete?.(channel) }
      this.#subs.set(channel, s)
      if (this.#ready) this.#subscribe(s)
      else if (this.#stream) this.#retry("another channel")
      return {
        channel,
        get id() { return s.id },
        close: () => {
          if (this.#subs.get(channel) !== s) return
          this.#subs.delete(channel)
          if (this.#ready) this.#ask({ command: "unsubscribe", channel }).catch(() => {})
        },
      }
    }

    publish(channel, data) {
      return this.#ask({ command: "publish", channel, ...(typeof data === "string" ? { data } : { base64: base64(data) }) }).then((m) => m.clients)
    }

    history(channel, last) { return this.#ask({ command: "history", channel, last }) }

    presence(channel) { return this.#ask({ command: "presence", channel }).then(({ clients, identities }) => ({ clients, identities })) }

    close() {
      removeEventListener("online", this.#now)
      this.#set("closed")
      this.#drop()
    }
  }

  globalThis.wscast = { connect: (url, options) => new Connection(url, options) }
})()
