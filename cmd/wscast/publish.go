package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"wscast/ipc"
)

// publishPatience is how long a message is published again while wscastd does not answer, as when it crashes and starts
// again. Tests change it.
var publishPatience = 30 * time.Second

var publishCommand = command{
	name:    "publish",
	args:    "CHANNEL [MESSAGE]",
	summary: "send a message to everybody on a channel",
	help: `
Prints how many receivers the message goes to; it is then in wscastd's log, and
survives a crash of wscastd. If wscastd crashes before it has answered, the
message is published again, and is in the log once all the same.

With --id a script can do that too: while the log has a message of this channel
with this ID, another one is not published, and the answer is as if it were. ID
is 1 to 128 bytes:

    wscast publish --id "deploy $build" news "$build is out"

Without MESSAGE, all of standard input is one message, byte for byte, with the
newline at its end if there is one.

With --lines each line of standard input is a message (without its newline) and
is sent at once:

    vmstat 1 | wscast publish --lines system

Then nothing is printed, but for lines that were refused. Answers are not waited
for line by line, so a long file goes fast.

MESSAGE is one argument: quote it. It may begin with a dash, since flags stand
only before CHANNEL; where it could be the very name of a flag, write

    wscast publish -- CHANNEL "$MESSAGE"
`,
	literal: true,
	setup: func(flags *flag.FlagSet) func(streams, []string) error {
		socket := socketFlag(flags)
		lines := flags.Bool("lines", false, "publish each line of standard input as a message")
		var id *string
		flags.Func("id", "publish nothing if the log has a message with this `ID`", func(text string) error {
			if text == "" || len(text) > ipc.MaxID {
				return fmt.Errorf("an id is 1 to %d bytes", ipc.MaxID)
			}
			id = &text
			return nil
		})
		return func(std streams, args []string) error {
			switch {
			case len(args) == 0:
				return &usageError{text: "publish: CHANNEL is missing", hint: "as in: wscast publish default hello"}
			case !ipc.ValidChannel(args[0]):
				return badChannel("publish", args[0])
			case *lines && id != nil:
				return &usageError{text: "publish: --id does not go with --lines", hint: "the lines are many messages, and an id is of one"}
			case *lines && len(args) > 1:
				return &usageError{text: "publish: MESSAGE does not go with --lines", hint: "--lines reads the messages from standard input"}
			case len(args) > 2:
				return &usageError{
					text: fmt.Sprintf("publish: %d arguments after CHANNEL: MESSAGE is one", len(args)-1),
					hint: "quote it: wscast publish " + shellQuote(args[0]) + " " + shellQuote(strings.Join(args[1:], " ")),
				}
			case *lines:
				return publishLines(*socket, args[0], std)
			case id == nil:
				random := rand.Text()
				id = &random
			}
			if len(args) == 2 {
				return publishOne(*socket, args[0], []byte(args[1]), *id, std.out)
			}
			message, err := readMessage(std, messageLimit)
			if err != nil {
				return err
			}
			return publishOne(*socket, args[0], message, *id, std.out)
		}
	},
}

func publishOne(socket, channel string, message []byte, id string, out io.Writer) error {
	client, err := ipc.Dial(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeoutCause(context.Background(), publishPatience, fmt.Errorf("%v are over", publishPatience))
	defer cancel()
	receivers, err := client.PublishOnce(ctx, channel, message, id)
	if err != nil {
		var refused *ipc.ReplyError
		if errors.As(err, &refused) {
			return err
		}
		return &failure{
			text: err.Error(),
			hint: "it is not known whether the message is published; publish it again with --id " + shellQuote(id) + " to have it once",
		}
	}
	return write(out, fmt.Appendln(nil, receivers))
}

// readMessage reads all of standard input as one message of at most limit bytes.
func readMessage(std streams, limit int) ([]byte, error) {
	if isTerminal(std.in) {
		fmt.Fprintln(std.err, "wscast: type the message; Ctrl-D on a line of its own ends it")
	}
	message, err := io.ReadAll(io.LimitReader(std.in, int64(limit)+1))
	if err != nil {
		return nil, inputError(err)
	}
	if len(message) > limit {
		return nil, &failure{
			text: fmt.Sprintf("standard input is longer than %d bytes: too long for a message", limit),
			hint: "with --lines each line is a message of its own",
		}
	}
	return message, nil
}

// publishLines publishes each line of standard input until its end. A line that wscastd refuses does not
// stop the others; it makes the run a failure.
func publishLines(socket, channel string, std streams) error {
	client, err := ipc.Dial(socket)
	if err != nil {
		return err
	}
	defer client.Close()

	tally := lineTally{err: std.err, lost: make(chan struct{})}
	stream := client.PublishMany(tally.answered)
	ended := make(chan error, 1)
	go func() {
		lines := lineReader{in: bufio.NewReaderSize(std.in, 64<<10), limit: messageLimit}
		for {
			line, err := lines.next()
			if err == nil {
				err = stream.Publish(channel, line)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err = <-ended:
	case <-tally.lost:
		// Said at once, not when the next line comes. The goroutine may wait for that line until the
		// process ends: a read from standard input cannot be taken back.
	}
	stream.Close() // waits for the answers; what it returns the tally has seen
	return tally.outcome(err)
}

// lineTally is what became of the lines. The stream's goroutine fills it in until the stream is closed.
type lineTally struct {
	err       io.Writer
	published uint64
	refused   uint64
	broken    error         // why the lines after these have no answer
	lost      chan struct{} // closed when broken is set
}

// refusalsShown keeps an input of nothing but wrong lines from being answered by as many error lines.
const refusalsShown = 10

func (t *lineTally) answered(a ipc.Answer) {
	var refused *ipc.ReplyError
	switch {
	case a.Err == nil:
		t.published++
	case errors.As(a.Err, &refused):
		t.refused++
		if t.refused <= refusalsShown {
			fmt.Fprintf(t.err, "wscast: line %d: %v\n", a.Index+1, a.Err)
		}
		if t.refused == refusalsShown {
			fmt.Fprintln(t.err, "wscast: more refused lines are only counted")
		}
	case t.broken == nil:
		t.broken = a.Err
		close(t.lost)
	}
}

// outcome is the error of the whole run. err is why the reading ended.
func (t *lineTally) outcome(err error) error {
	answered := t.published + t.refused
	switch {
	case t.broken != nil:
		return &failure{
			text: t.broken.Error(),
			hint: fmt.Sprintf("lines answered: %d; from line %d on it is not known what was published", answered, answered+1),
		}
	case err != io.EOF:
		return err
	case t.refused > 0:
		return fmt.Errorf("%d of %d lines were refused", t.refused, answered)
	}
	return nil
}

// lineReader cuts its input into lines.
type lineReader struct {
	in    *bufio.Reader
	limit int    // longest line, in bytes
	count uint64 // lines returned
	long  []byte // a line that is longer than the buffer of in
}

// next returns the next line without its newline, valid until the next call, or io.EOF. The last line
// need not end with a newline.
func (r *lineReader) next() ([]byte, error) {
	r.long = r.long[:0]
	for {
		line, err := r.in.ReadSlice('\n')
		if len(r.long)+len(bytes.TrimSuffix(line, []byte("\n"))) > r.limit {
			return nil, fmt.Errorf("line %d is longer than %d bytes: too long for a message", r.count+1, r.limit)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			r.long = append(r.long, line...)
			continue
		case err == io.EOF && len(r.long)+len(line) == 0:
			return nil, io.EOF
		case err != nil && err != io.EOF:
			return nil, inputError(err)
		}
		if len(r.long) > 0 {
			r.long = append(r.long, line...)
			line = r.long
		}
		r.count++
		return bytes.TrimSuffix(line, []byte("\n")), nil
	}
}

func inputError(err error) error {
	return fmt.Errorf("cannot read standard input: %w", lastCause(err))
}

// shellQuote quotes a word for a POSIX shell, where it needs it.
func shellQuote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-:/", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
