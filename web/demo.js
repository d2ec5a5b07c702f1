// The demo page: joins a channel and shows what is published there. Messages are put into the document as text only.
'use strict';

const kept = 200;          // messages shown
const shownText = 4096;    // characters of a text message shown
const shownBytes = 256;    // bytes of a binary message shown
const firstDelay = 500;    // ms: the first reconnection comes within this time
const longestDelay = 30000;
const stableAfter = 10000; // ms open until a connection counts as good and delays start over
const rateWindow = 5;      // seconds

// What the codes that wscastd and browsers close with mean (RFC 6455, section 7.4, and the IANA registry).
const closeCodes = {
	1000: 'closed normally',
	1001: 'going away',
	1002: 'protocol error',
	1005: 'closed without a code',
	1006: 'connection lost or refused',
	1007: 'invalid UTF-8',
	1008: 'policy violation',
	1009: 'message too big',
	1011: 'server error',
	1012: 'service restart',
	1013: 'too slow, or try again later',
};

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search).get('channel');
const channel = asked === null || asked === '' ? 'default' : asked;
const valid = /^[A-Za-z0-9._:\/-]{1,128}$/.test(channel);

// connecting -> open -> closed -> connecting and so on, until the Disconnect button; then closed stays until the Connect button.
let socket = null;     // null while closed
let wanted = true;     // reconnect when the connection ends
let attempts = 0;      // since the last connection that was stable
let retryTimer = 0;
let stableTimer = 0;

let count = 0;
let arrived = [];      // [second, messages], the last rateWindow seconds
let waiting = [];      // messages not drawn yet, the newest last
let drawing = false;

function connect() {
	clearTimeout(retryTimer);
	wanted = true;
	// Relative to the page, so that it works below a path of a proxy; ws for http, wss for https. The slashes of a channel
	// may stay, and nothing else in it needs escaping.
	const url = new URL(document.body.dataset.websocket + '/' + channel, location.href);
	url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
	url.search = '';
	show('connecting', url.href);
	socket = new WebSocket(url);
	socket.binaryType = 'arraybuffer';
	socket.onopen = () => {
		stableTimer = setTimeout(() => { attempts = 0; }, stableAfter);
		show('open', url.href);
	};
	socket.onmessage = (event) => receive(event.data);
	socket.onclose = (event) => {
		clearTimeout(stableTimer);
		socket = null;
		const meaning = closeCodes[event.code] || 'unknown code';
		const what = event.code + ' ' + meaning + (event.reason && event.reason !== meaning ? ': ' + event.reason : '');
		if (wanted) {
			retry(what);
		} else {
			show('closed', what);
		}
	};
}

// Every code is retried alike: 1012 and 1013 ask for it, and after any other this page has nothing better to do. A random time out
// of a range that doubles ("full jitter") spreads the clients of a server that went away over the whole range.
function retry(what) {
	const delay = Math.random() * Math.min(longestDelay, firstDelay * 2 ** attempts);
	attempts++;
	retryTimer = setTimeout(connect, delay);
	show('closed', what + '; next try in ' + (delay / 1000).toFixed(1) + ' s');
}

function disconnect() {
	wanted = false;
	clearTimeout(retryTimer);
	socket.close(1000);
}

function show(state, detail) {
	$('state').dataset.state = state;
	$('state-name').textContent = state;
	$('state-detail').textContent = detail;
	$('connect').textContent = state === 'closed' ? 'Connect' : 'Disconnect';
}

function receive(data) {
	count++;
	const second = Math.floor(performance.now() / 1000);
	const last = arrived[arrived.length - 1];
	if (last && last[0] === second) {
		last[1]++;
	} else {
		arrived.push([second, 1]);
	}
	// Only what can still be seen is kept until the next frame, which a page in the background may wait for a long time.
	waiting.push({ data, time: new Date() });
	if (waiting.length > kept) {
		waiting.shift();
	}
	if (!drawing) {
		drawing = true;
		requestAnimationFrame(draw);
	}
}

function draw() {
	drawing = false;
	const fresh = document.createDocumentFragment();
	for (const message of waiting.reverse()) {
		fresh.append(item(message));
	}
	waiting = [];
	const list = $('messages');
	list.prepend(fresh);
	while (list.childElementCount > kept) {
		list.lastElementChild.remove();
	}
	$('empty').hidden = list.childElementCount > 0;
	$('count').textContent = count.toLocaleString('en');
	drawRate();
}

function drawRate() {
	const now = performance.now() / 1000;
	arrived = arrived.filter(([second]) => second > now - rateWindow - 1);
	const messages = arrived.reduce((sum, [, n]) => sum + n, 0);
	const rate = messages / Math.min(rateWindow, Math.max(1, now));
	$('rate').textContent = rate >= 10 || rate === 0 ? Math.round(rate).toLocaleString('en') : rate.toFixed(1);
}

function item({ data, time }) {
	const text = typeof data === 'string';
	const about = element('div', clock(time));
	about.className = 'about';
	const size = text ? data.length : data.byteLength;
	about.append(element('span', text ? 'text' : 'binary, ' + bytes(size)));
	const body = element('pre', text ? data.slice(0, shownText) : hexDump(new Uint8Array(data, 0, Math.min(size, shownBytes))));
	const hidden = size - (text ? shownText : shownBytes);
	if (hidden > 0) {
		about.append(element('span', hidden.toLocaleString('en') + (text ? ' more characters' : ' more bytes') + ' not shown'));
	}
	const li = element('li', about, body);
	li.className = text ? 'text' : 'binary';
	return li;
}

function element(name, ...content) {
	const e = document.createElement(name);
	e.append(...content); // strings become text nodes
	return e;
}

function clock(time) {
	const part = (n, width) => String(n).padStart(width, '0');
	const e = element('time', part(time.getHours(), 2) + ':' + part(time.getMinutes(), 2) + ':' + part(time.getSeconds(), 2) + '.' + part(time.getMilliseconds(), 3));
	e.dateTime = time.toISOString();
	return e;
}

function bytes(n) {
	return n.toLocaleString('en') + (n === 1 ? ' byte' : ' bytes');
}

// As hexdump -C: offset, 16 bytes, and those of them that are printable ASCII.
function hexDump(data) {
	const lines = [];
	for (let at = 0; at < data.length; at += 16) {
		const row = Array.from(data.subarray(at, at + 16));
		const hex = row.map((b) => b.toString(16).padStart(2, '0')).join(' ');
		const ascii = row.map((b) => (b >= 0x20 && b < 0x7f ? String.fromCharCode(b) : '.')).join('');
		lines.push(at.toString(16).padStart(4, '0') + '  ' + hex.padEnd(47) + '  ' + ascii);
	}
	return lines.join('\n');
}

// The commands to publish with, for this channel and the daemon's socket.
function showPublish() {
	const path = document.body.dataset.socket;
	// A shell takes anything in single quotes as it is, but for a single quote.
	const socketPath = /^[A-Za-z0-9._\/-]+$/.test(path) ? path : "'" + path.replaceAll("'", "'\\''") + "'";
	const option = path === '/run/wscast/publish.sock' ? '' : '--socket ' + socketPath + ' ';
	for (const command of [
		'wscast publish ' + option + channel + ' hello',
		'redis-cli -s ' + socketPath + ' PUBLISH ' + channel + ' hello',
		"echo 'PUBLISH " + channel + " hello' | nc -U -N " + socketPath,
	]) {
		const li = element('li', element('code', command));
		// Only https and localhost have a clipboard (Secure Contexts).
		if (navigator.clipboard) {
			const copy = element('button', 'Copy');
			copy.type = 'button';
			copy.setAttribute('aria-label', 'Copy: ' + command);
			copy.onclick = () => navigator.clipboard.writeText(command).then(() => {
				copy.textContent = 'Copied';
				setTimeout(() => { copy.textContent = 'Copy'; }, 1500);
			});
			li.append(copy);
		}
		$('publish').append(li);
	}
}

$('channel').value = channel;
$('clear').onclick = () => {
	waiting = [];
	count = 0;
	arrived = [];
	$('messages').replaceChildren();
	draw();
};

if (valid) {
	document.title = channel + ' · wscast';
	showPublish();
	$('connect').onclick = () => (socket ? disconnect() : connect());
	setInterval(drawRate, 1000);
	// The network is back: no need to wait for the next try.
	addEventListener('online', () => { if (wanted && !socket) connect(); });
	// A page with an open WebSocket cannot be kept for the Back button.
	addEventListener('pagehide', () => { if (socket) socket.close(); });
	addEventListener('pageshow', (event) => { if (event.persisted && wanted && !socket) connect(); });
	connect();
} else {
	$('connect').hidden = true;
	show('closed', 'not a channel: a name has 1 to 128 letters, digits and . _ - : /');
}
