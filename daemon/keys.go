package daemon

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// What is known about the configuration's keys comes from the structures and their tags alone: a key is its section's
// name, a dot, and its own name, as websocket.ping.

// Keys are the names of all keys, in the order of the file; those of the repeated sections [[channel]], [[publish.allow]] and
// [[log.own]] as channel.match, publish.allow.users and log.own.match.
func Keys() []string {
	var keys []string
	for section := range fields(reflect.TypeFor[Config]()) {
		for field := range fields(sectionType(section)) {
			if !repeated(field) {
				keys = append(keys, keyName(section, field))
				continue
			}
			for inner := range fields(sectionType(field)) {
				keys = append(keys, section.Tag.Get("toml")+"."+keyName(field, inner))
			}
		}
	}
	return keys
}

// sections are the names of all sections.
func sections() (names []string) {
	for section := range fields(reflect.TypeFor[Config]()) {
		names = append(names, section.Tag.Get("toml"))
		for field := range fields(sectionType(section)) {
			if repeated(field) {
				names = append(names, keyName(section, field))
			}
		}
	}
	return names
}

// FixedChanges are the keys in which two configurations differ but which take effect at a start only.
func FixedChanges(old, new Config) []string {
	var changed []string
	eachFixed(&old, &new, func(key string, was, is reflect.Value) {
		if !same(was, is) {
			changed = append(changed, key)
		}
	})
	return changed
}

// keepFixed puts the values that hold until the next start into a configuration that is about to be used.
func (c *Config) keepFixed(old Config) {
	eachFixed(&old, c, func(_ string, was, is reflect.Value) { is.Set(was) })
}

// eachFixed goes through the keys that take effect at a start only, with their values in two configurations.
func eachFixed(old, new *Config, do func(key string, was, is reflect.Value)) {
	was, is := reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem()
	for section := range fields(was.Type()) {
		for field := range fields(sectionType(section)) {
			if field.Tag.Get("fixed") != "" {
				do(keyName(section, field), was.FieldByIndex(section.Index).FieldByIndex(field.Index),
					is.FieldByIndex(section.Index).FieldByIndex(field.Index))
			}
		}
	}
}

// same compares values; a list without entries is one whether it was written or not.
func same(a, b reflect.Value) bool {
	if a.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

func keyName(section, field reflect.StructField) string {
	return section.Tag.Get("toml") + "." + field.Tag.Get("toml")
}

// sectionType is the structure of a section, be it a repeated one.
func sectionType(section reflect.StructField) reflect.Type {
	if repeated(section) {
		return section.Type.Elem()
	}
	return section.Type
}

// repeated reports whether a field is a section that there can be any number of.
func repeated(f reflect.StructField) bool {
	return f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct
}

func fields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

// checkShape finds the keys that there are not, and the values of a wrong type. The TOML package alone would take keys in any
// mixture of cases, and numbers and booleans for strings, and would not name the key of a wrong type.
func checkShape(tree map[string]any) *ConfigError {
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		section, ok := fieldOf(reflect.TypeFor[Config](), name)
		if !ok {
			return unknown(name, tree[name])
		}
		if err := checkSections(section, name, tree[name]); err != nil {
			return err
		}
	}
	return nil
}

// checkSections checks what stands where a section belongs, be it a repeated one.
func checkSections(section reflect.StructField, name string, value any) *ConfigError {
	repeated := repeated(section)
	switch value := tables(value).(type) {
	case map[string]any:
		if repeated {
			return &ConfigError{Text: fmt.Sprintf("%s is a section that can be repeated", name), Hint: fmt.Sprintf("write [[%s]]", name)}
		}
		return checkSection(section, name, value)
	case []map[string]any:
		if !repeated {
			return &ConfigError{Text: fmt.Sprintf("%s is a section that there is once", name), Hint: fmt.Sprintf("write [%s]", name)}
		}
		for i, one := range value {
			if err := checkSection(section, fmt.Sprintf("%s[%d]", name, i), one); err != nil {
				return err
			}
		}
		return nil
	}
	brackets := "[%s]"
	if repeated {
		brackets = "[[%s]]"
	}
	return &ConfigError{Text: fmt.Sprintf("%s is a section, not a key", name), Hint: "write " + fmt.Sprintf(brackets, name) + " and its keys below"}
}

// tables makes no difference between [[name]] and name = [{}].
func tables(value any) any {
	list, _ := value.([]any)
	if len(list) == 0 {
		return value
	}
	all := make([]map[string]any, len(list))
	for i, item := range list {
		table, ok := item.(map[string]any)
		if !ok {
			return value
		}
		all[i] = table
	}
	return all
}

func checkSection(section reflect.StructField, name string, tree map[string]any) *ConfigError {
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		field, ok := fieldOf(sectionType(section), key)
		if !ok {
			return unknown(name+"."+key, nil)
		}
		if repeated(field) {
			if err := checkSections(field, name+"."+key, tree[key]); err != nil {
				return err
			}
			continue
		}
		if want := wrongType(field.Type, tree[key]); want != "" {
			return &ConfigError{Text: fmt.Sprintf("%s.%s has a value of the wrong type", name, key), Hint: "write " + key + " = " + want}
		}
	}
	return nil
}

func fieldOf(t reflect.Type, name string) (reflect.StructField, bool) {
	for f := range fields(t) {
		if f.Tag.Get("toml") == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// wrongType returns what a value should look like if it does not look like it.
func wrongType(t reflect.Type, value any) string {
	_, isString := value.(string)
	_, isInteger := value.(int64)
	switch t {
	case reflect.TypeFor[Duration]():
		return unless(isString, `"25s", a duration in quotes`)
	case reflect.TypeFor[Size]():
		return unless(isString || isInteger, `"64KiB", a size in quotes, or a number of bytes`)
	case reflect.TypeFor[Mode]():
		return unless(isString, `"0660", a mode in quotes`) // a number would be taken for a decimal one by TOML
	}
	switch t.Kind() {
	case reflect.String:
		return unless(isString, `"…", text in quotes`)
	case reflect.Int:
		return unless(isInteger, "a whole number")
	case reflect.Bool:
		_, isBool := value.(bool)
		return unless(isBool, "true or false, without quotes")
	}
	list, ok := value.([]any)
	for _, item := range list {
		if _, isString := item.(string); !isString {
			ok = false
		}
	}
	return unless(ok, `["…", "…"], a list of texts in quotes`)
}

func unless(good bool, hint string) string {
	if good {
		return ""
	}
	return hint
}

// unknown is the error for a key, or a section, that there is not.
func unknown(key string, value any) *ConfigError {
	kind, known := "key", append(Keys(), sections()...)
	switch value.(type) {
	case map[string]any, []map[string]any:
		kind, known = "section", sections()
	}
	e := &ConfigError{Text: fmt.Sprintf("unknown %s %q", kind, key)}
	if near := nearest(key, known); near != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", near)
	} else {
		e.Hint = "wscast.toml(5) lists the keys; a key belongs below its [section]"
	}
	return e
}

// nearest is the known key that is at most a few typing errors away, or has the right name in the wrong section.
func nearest(key string, known []string) string {
	if len(key) > longestKey {
		return ""
	}
	key = strings.ToLower(key)
	if section, rest, ok := strings.Cut(key, "["); ok { // channel[1].match
		if _, name, ok := strings.Cut(rest, "]"); ok {
			key = section + name
		}
	}
	name := key[strings.LastIndexByte(key, '.')+1:]
	best, distance := "", 2+len(name)/3 // of which the error is less
	for _, k := range known {
		d := editDistance(key, k)
		if strings.HasSuffix(k, "."+name) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = k, d
		}
	}
	return best
}

// longestKey is the longest one that is compared with the known ones, none of which is half as long.
const longestKey = 64

// editDistance counts the insertions, deletions and replacements between two words (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
