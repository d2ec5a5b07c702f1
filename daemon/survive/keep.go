package survive

// Keep is what outlives the process of its clients.
type Keep struct {
	Table *Table
	Lot   *Lot // nil: there is nobody who keeps descriptors for us, and nothing is parked
}
